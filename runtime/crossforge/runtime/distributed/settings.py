"""How a bulk job is set, and where it runs."""

from __future__ import annotations

from dataclasses import dataclass

from crossforge.profiles import Activation, DeploymentProfile, InputError
from crossforge.runtime.precision import AUTO


@dataclass(frozen=True, kw_only=True)
class BulkSettings:
    """What decides on the scores of a job, and on their bytes."""

    provider: str = AUTO
    precision: str = AUTO
    deployment: DeploymentProfile | None = None
    """Its order of providers, variant, token budget and GPU options count; how many run at once is the runner's."""
    activation: Activation | None = None
    """Applied to the logits; None gives raw relevance."""
    shard_pairs: int = 1_024
    """Pairs of a shard, about: what is planned in batches together, and what a killed job may have to score again."""

    def __post_init__(self) -> None:
        if self.shard_pairs < 1:
            raise InputError("shard_pairs is too small", got=self.shard_pairs, allowed="1 or more")


@dataclass(frozen=True, kw_only=True)
class RaySettings:
    """Where a job runs on Ray. None of it changes a score."""

    address: str | None = None
    """A cluster. None takes what Ray finds (``RAY_ADDRESS``, a cluster here) or starts one; ``local`` starts one."""
    actors: int | None = None
    """Rerankers at once; None takes what the cluster has room for."""
    cpus_per_actor: int = 1
    """Cores of an actor, and batches that it computes at the same time."""
    gpus_per_actor: float = 0.0
    """GPUs of an actor; 0.5 puts two on one."""

    def __post_init__(self) -> None:
        if self.actors is not None and self.actors < 1:
            raise InputError("actors is too small", got=self.actors, allowed="1 or more")
        if self.cpus_per_actor < 1:
            raise InputError("cpus_per_actor is too small", got=self.cpus_per_actor, allowed="1 or more")
        if self.gpus_per_actor < 0:
            raise InputError("gpus_per_actor is too small", got=self.gpus_per_actor, allowed="0 or more")
