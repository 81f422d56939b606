"""The HTTP service as a Ray Serve deployment: replicas come and go with the load, each with its own micro-batcher.

``serve run crossforge.runtime.distributed.deployment:build_app bundle=FOLDER`` starts it, and so does ``serve.run``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from crossforge.profiles import DeploymentProfile, EngineError, InputError, MissingPackageError
from crossforge.profiles.telemetry import switch_off_telemetry

if TYPE_CHECKING:
    from fastapi import FastAPI

    from crossforge.runtime.serving.settings import ServiceSettings

NAME = "crossforge"
"""Of the deployment, in Ray Serve's status and configuration files."""


@dataclass(frozen=True, kw_only=True)
class ReplicaSettings:
    """What a replica serves, and how many there are."""

    bundle: str
    """A folder or ``NAME=FOLDER``, several with commas; every node has to reach them."""
    provider: str = "auto"
    precision: str = "auto"
    min_replicas: int = 1
    max_replicas: int = 4
    target_ongoing_requests: float = 8.0
    """Requests under way that a replica should have: with more, Ray Serve adds one. They are computed together."""
    max_ongoing_requests: int = 64
    """Requests that a replica takes at the same time; further ones wait in Ray Serve's proxy."""
    cpus_per_replica: float = 1.0
    """Cores that Ray reserves, and threads that a replica without a GPU computes with."""
    gpus_per_replica: float = 0.0
    drain_timeout_s: float = 30.0
    """Longest time that the requests of a replica may take to end once it is to stop."""
    service: ServiceSettings | None = None
    """Keys and limits; its address is Ray Serve's business."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_replicas <= self.max_replicas:
            raise InputError(
                "the numbers of replicas do not fit",
                got=f"min_replicas {self.min_replicas}, max_replicas {self.max_replicas}",
                allowed="1 <= min_replicas <= max_replicas",
            )
        for name in ("target_ongoing_requests", "max_ongoing_requests", "drain_timeout_s"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is too small", got=getattr(self, name), allowed="more than 0")
        for name in ("cpus_per_replica", "gpus_per_replica"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is too small", got=getattr(self, name), allowed="0 or more")

    @classmethod
    def parse(cls, arguments: Mapping[str, object]) -> ReplicaSettings:
        """Read what a command line or a configuration file of Ray Serve says, numbers as text or not.

        Raises:
            InputError: A name is unknown, the bundle is missing, or a value is none.
        """
        known = {item.name: item for item in fields(cls) if item.name != "service"}
        if unknown := sorted(arguments.keys() - known.keys()):
            raise InputError(f"unknown argument {unknown[0]!r}", allowed=", ".join(known))
        if "bundle" not in arguments:
            raise InputError("the argument 'bundle' is missing", allowed="bundle=FOLDER")
        convert = {"int": int, "float": float, "str": str}
        values: dict[str, Any] = {}
        for name, value in arguments.items():
            try:
                values[name] = convert[str(known[name].type)](str(value))
            except ValueError as error:
                raise InputError(f"{name} is not a number", got=repr(value)) from error
        return cls(**values)


def build_app(arguments: Mapping[str, object] | ReplicaSettings) -> Any:
    """Make the application for ``serve.run``, ``serve run`` and ``serve build``.

    Args:
        arguments: The settings, or their fields by name, as Ray Serve passes them on from a command line.

    Returns:
        A ``ray.serve.Application``.

    Raises:
        InputError: See :meth:`ReplicaSettings.parse`.
        MissingPackageError: Ray Serve is not installed.
    """
    settings = arguments if isinstance(arguments, ReplicaSettings) else ReplicaSettings.parse(arguments)
    switch_off_telemetry()
    try:
        from ray import serve
    except ModuleNotFoundError as error:
        raise MissingPackageError(str(error.name), extra="ray", purpose="A deployment on Ray Serve") from error

    def make_app() -> FastAPI:
        return create_replica(settings)

    deployment: Any = serve.deployment(
        serve.ingress(make_app)(_Replica),
        name=NAME,
        autoscaling_config={
            "min_replicas": settings.min_replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": settings.target_ongoing_requests,
        },
        max_ongoing_requests=settings.max_ongoing_requests,
        graceful_shutdown_timeout_s=settings.drain_timeout_s,
        ray_actor_options={"num_cpus": settings.cpus_per_replica, "num_gpus": settings.gpus_per_replica},
    )
    return deployment.bind()


def create_replica(settings: ReplicaSettings) -> FastAPI:
    """The application of one replica: the bundles, loaded, behind the service's own dialects, queue and limits.

    Raises:
        CrossforgeError: As :func:`~crossforge.runtime.serving.models.load_models`.
    """
    from crossforge.runtime.serving.app import create_app
    from crossforge.runtime.serving.models import ModelSpec, load_models
    from crossforge.runtime.serving.settings import ServiceSettings

    service = settings.service or ServiceSettings(playground=False)  # a page's requests would go to any replica
    specs = [ModelSpec.parse(text) for text in settings.bundle.split(",")]
    # As many threads as cores were reserved: a replica sees all of its node's.
    threads = None if settings.gpus_per_replica else max(1, round(settings.cpus_per_replica))
    deployment = DeploymentProfile(workers=threads)
    models = load_models(specs, service, provider=settings.provider, precision=settings.precision, deployment=deployment)
    return create_app(models, service)


class _Replica:
    """What Ray Serve asks beside requests."""

    app: FastAPI
    """Set by ``serve.ingress``."""

    async def check_health(self) -> None:
        """Raise if a model does not answer; Ray Serve then replaces the replica."""
        from crossforge.runtime.serving.health import answers

        for model in dict.fromkeys(self.app.state.service.models.values()):
            if not await answers(model):
                raise EngineError(f"no answer from {model.name}")
