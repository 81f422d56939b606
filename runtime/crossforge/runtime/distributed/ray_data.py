"""Shards on Ray: a pool of actors under Ray Data, each with one reranker.

Only numbers of shards and receipts go through Ray. Texts and scores stay in files, so neither the driver nor Ray's object
store holds more for a larger input.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossforge.profiles import CrossforgeError, EngineError, InputError, MachineError, MissingPackageError, errors
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
                    yield _read_note(row["note"])
            except ray.exceptions.RayError as error:
                raise EngineError(f"Ray gave the work up ({str(error).strip().splitlines()[0]})") from error


class _Actor:
    """What Ray Data calls for each shard.

    An error of ours is told like a receipt, in a note: raised here, it would reach the driver wrapped in Ray's own words.
    """

    def __init__(self, work: ShardWork, threads: int) -> None:
        self._scorer: ShardScorer | None = None
        self._failure: CrossforgeError | None = None
        try:
            self._scorer = ShardScorer(work, threads=threads)
        except CrossforgeError as error:
            self._failure = error

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, list[str]]:
        return {"note": [note for shard in batch["shard"] if (note := self._score(int(shard))) is not None]}

    def _score(self, shard: int) -> str | None:
        try:
            if self._scorer is None:
                raise self._failure or EngineError("the reranker was not loaded")
            receipt = self._scorer.score(shard)
        except CrossforgeError as error:
            return json.dumps({"failed": type(error).__name__, "words": str(error)})
        return None if receipt is None else json.dumps(asdict(receipt))


def _read_note(note: str) -> Receipt:
    """A receipt; an error is raised."""
    told = json.loads(note)
    if "failed" not in told:
        return Receipt(**told)
    kind: type[CrossforgeError] = getattr(errors, told["failed"])
    error = kind.__new__(kind)
    CrossforgeError.__init__(error, told["words"].removesuffix("."))
    raise error


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
    new: dict[str, Any] = {"include_dashboard": False} if address is None else {}
    if address == "local":
        new = {"include_dashboard": False, "object_store_memory": _STORE_BYTES}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, **new)
    except (ray.exceptions.RayError, ConnectionError, ValueError, RuntimeError) as error:
        raise MachineError(
            f"cannot connect to Ray ({' '.join(str(error).split())})",
            got=address or os.environ.get("RAY_ADDRESS") or "no address",
            fix="A cluster that asks for a token needs RAY_AUTH_MODE=token and the token here too.",
        ) from error
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
