"""Shards on Ray: a pool of actors under Ray Data, each with one reranker.

Only numbers of shards and receipts go through Ray. Texts and scores stay in files, so neither the driver nor Ray's object
store holds more for a larger input.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossforge.profiles import CrossforgeError, EngineError, InputError, MachineError, MissingPackageError
from crossforge.profiles.telemetry import switch_off_telemetry
from crossforge.runtime.distributed.scorer import Receipt, ShardScorer, ShardWork
from crossforge.runtime.distributed.settings import RaySettings

_MOST_TASKS = 4_096
"""Ray keeps some kilobytes for each; beyond that, a task is several shards."""
_STORE_BYTES = 100_000_000
"""Shared memory of a cluster that is started here: numbers and receipts need no more, and a container may have little."""


class RayRunner:
    """Actors on Ray.

    Args:
        settings: Where, and how many.
    """

    def __init__(self, settings: RaySettings | None = None) -> None:
        self._settings = settings or RaySettings()

    def run(self, work: ShardWork, shards: NDArray[np.int64]) -> Iterator[Receipt]:
        """See :meth:`~crossforge.runtime.distributed.bulk.Runner.run`.

        Raises:
            MissingPackageError: Ray is not installed.
            MachineError: There is no such cluster, or it has no room for an actor.
            CrossforgeError: What an actor raised.
        """
        if not len(shards):
            return
        with connected(self._settings.address) as ray:
            import ray.data as ray_data

            actors = min(_room(ray, self._settings), len(shards))
            for name in ("ray.data", "ray.data._internal"):
                logging.getLogger(name).setLevel(logging.WARNING)
            items = [{"shard": shard} for shard in shards.tolist()]
            dataset = ray_data.from_items(items, override_num_blocks=min(len(items), _MOST_TASKS))
            dataset.context.enable_progress_bars = False
            receipts = dataset.map_batches(
                _Actor,
                batch_size=1,
                compute=ray_data.ActorPoolStrategy(size=actors),
                fn_constructor_kwargs={"work": work, "threads": self._settings.cpus_per_actor},
                num_cpus=self._settings.cpus_per_actor,
                num_gpus=self._settings.gpus_per_actor or None,
            )
            try:
                for row in receipts.iter_rows():
                    yield Receipt(**row)
            except ray.exceptions.RayError as error:
                raise _ours(error) from error


class _Actor:
    """What Ray Data calls for each shard."""

    def __init__(self, work: ShardWork, threads: int) -> None:
        self._scorer = ShardScorer(work, threads=threads)

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, list[object]]:
        receipts = [self._scorer.score(int(shard)) for shard in batch["shard"]]
        told = [vars(receipt) for receipt in receipts if receipt is not None]
        return {name: [receipt[name] for receipt in told] for name in Receipt.__dataclass_fields__}


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """The package ``ray``, connected to a cluster; what was not connected before is not afterwards.

    Ray would report its use to its makers: that is switched off, unless the environment says something else.

    Raises:
        MissingPackageError: Ray is not installed.
        MachineError: There is no cluster at that address.
    """
    switch_off_telemetry()
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise MissingPackageError(str(error.name), extra="ray", purpose="Scoring on Ray") from error
    if ray.is_initialized():
        yield ray
        return
    quiet: dict[str, object] = {"log_to_driver": False, "logging_level": logging.WARNING}
    try:
        if address != "local":
            ray.init(address=address or "auto", **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        if address is not None or not isinstance(error, ConnectionError):
            raise MachineError(f"cannot connect to Ray ({error})", got=address or "no address") from error
    if not ray.is_initialized():
        ray.init(address="local", include_dashboard=False, object_store_memory=_STORE_BYTES, **quiet)
    try:
        yield ray
    finally:
        ray.shutdown()


def _room(ray: Any, settings: RaySettings) -> int:
    """Actors to start: as many as were asked for, or as fit."""
    there = ray.cluster_resources()
    fit = int(there.get("CPU", 0) // settings.cpus_per_actor)
    if settings.gpus_per_actor:
        fit = min(fit, int(there.get("GPU", 0) / settings.gpus_per_actor))
    if fit < 1:
        raise MachineError(
            "the cluster has no room for an actor",
            got=f"{there.get('CPU', 0):g} CPUs, {there.get('GPU', 0):g} GPUs",
            allowed=f"{settings.cpus_per_actor} CPUs, {settings.gpus_per_actor:g} GPUs or more",
        )
    if settings.actors is not None and settings.actors > fit:
        raise InputError("the cluster has no room for so many actors", got=settings.actors, allowed=f"up to {fit}")
    return settings.actors or fit


def _ours(error: BaseException) -> CrossforgeError:
    """What an actor raised, without Ray's wrapping."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, CrossforgeError):
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    return EngineError(f"an actor failed: {str(error).strip().splitlines()[-1]}")
