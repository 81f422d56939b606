"""The models that are served, each by its name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from crossforge.profiles import DeploymentProfile, InputError, Precision
from crossforge.runtime.bundle import Bundle
from crossforge.runtime.hub import HubAddress
from crossforge.runtime.microbatch import MicroBatchConfig, MicroBatcher
from crossforge.runtime.reranker import Reranker
from crossforge.runtime.serving.scorers import PlainScorer, Scorer
from crossforge.runtime.serving.settings import ServiceSettings
from crossforge.runtime.serving.watch import WatchedSession


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A bundle to serve, and what it is called."""

    name: str
    bundle: Path | str
    """Its folder, or ``owner/name`` on the hub."""

    @classmethod
    def parse(cls, text: str) -> ModelSpec:
        """Read ``NAME=BUNDLE``, or a bundle that is called as its folder, or as its repository on the hub without the owner.

        Raises:
            InputError: The name is empty.
        """
        name, equals, path = text.partition("=")
        if not equals or ("/" in name and Path(text).exists()):
            name, path = Path(text).resolve().name, text
        if not name or not path:
            raise InputError("a model cannot be read", got=repr(text), allowed="BUNDLE or NAME=BUNDLE")
        address = HubAddress.parse(path)
        if address is None:
            return cls(name=name, bundle=Path(path))
        return cls(name=name if equals else address.repo.partition("/")[2], bundle=path)

    @property
    def key(self) -> Path | str:
        """The same for two names of one bundle."""
        return self.bundle.resolve() if isinstance(self.bundle, Path) else self.bundle


TURN_TOKENS = 4_096
"""What a request may have computed in one turn: all of 20 passages of 200 tokens."""


class ServedModel:
    """A reranker with a name, and who computes for it. It owns both: close it.

    Args:
        name: What requests call it.
        reranker: Scores the pairs.
        settings: Whether requests are merged, and how many tokens may wait.
        open_variant: Loads another variant of its bundle, where there is one.

    Raises:
        InputError: No label of the model ranks, or the queue has no room for one pair.
    """

    def __init__(
        self,
        name: str,
        reranker: Reranker,
        settings: ServiceSettings | None = None,
        *,
        open_variant: Callable[[Precision], Reranker] | None = None,
    ) -> None:
        settings = settings or ServiceSettings()
        if reranker.manifest.scoring.ranking_label is None:
            raise InputError(
                f"{name} classifies pairs and has no label that ranks",
                got=", ".join(reranker.manifest.scoring.labels),
                fix="Export it again with --ranking-label.",
            )
        if settings.max_queue_tokens < (longest := reranker.tokenizer.truncation.max_length):
            raise InputError(
                "max_queue_tokens is too small for one pair",
                got=f"{settings.max_queue_tokens:,}",
                allowed=f"{longest:,}, the longest that {name} reads, or more",
            )
        self.name = name
        self.reranker = reranker
        self.open_variant = open_variant
        self.session = WatchedSession(reranker.session)
        reranker.session = self.session
        self.probe: asyncio.Task[bool] | None = None
        """The forward pass that finds out whether it answers, for all who ask meanwhile."""
        self.scorer: Scorer = (
            MicroBatcher(reranker, _config(reranker, settings)) if settings.micro_batching else PlainScorer(reranker)
        )

    def explain(self) -> str:
        """The variant and the provider that run, and why."""
        reranker = self.reranker
        why = "; ".join(reranker.precision_choice.reasons) if reranker.precision_choice else ""
        variant = f"{reranker.precision}" + (f" ({why})" if why else "")
        provider = reranker.provider_plan.explain() if reranker.provider_plan else str(reranker.session.provider)
        return f"{variant} on {provider}"

    def close(self, *, timeout_s: float | None = None) -> None:
        """Answer what was taken, and free the model."""
        self.scorer.close(timeout_s=timeout_s)
        self.reranker.close()


def _config(reranker: Reranker, settings: ServiceSettings) -> MicroBatchConfig:
    """Turns that hold a usual request whole.

    In turns of one batch on a CPU, a request of 20 passages stands in line five times, behind those that came after it: at
    overload it then waits for twice what a full queue takes.
    """
    turn = min(settings.max_queue_tokens, max(TURN_TOKENS, reranker.budget_tokens))
    return MicroBatchConfig(max_queue_tokens=settings.max_queue_tokens, slice_tokens=turn)


def load_models(
    specs: Sequence[ModelSpec],
    settings: ServiceSettings,
    *,
    provider: str = "auto",
    precision: str = "auto",
    strict: bool = False,
    deployment: DeploymentProfile | None = None,
) -> dict[str, ServedModel]:
    """Load bundles to serve; one that has several names is loaded once.

    Args:
        specs: At least one; the first is the model of requests that name none.
        settings: Of the service.
        provider: As for :meth:`Reranker.load`, for every bundle; and so are the others.
        precision: See there.
        strict: See there.
        deployment: See there.

    Raises:
        InputError: There is no bundle, or two have one name.
        CrossforgeError: As :meth:`Reranker.load`; what was loaded before is closed.
    """
    names = [spec.name for spec in specs]
    if not names or len(set(names)) != len(names):
        raise InputError("every model needs a name of its own", got=", ".join(names) or "none", allowed="NAME=BUNDLE")
    loaded: dict[Path | str, ServedModel] = {}
    try:
        for spec in specs:
            if spec.key not in loaded:
                # Found on the hub once: a variant that is loaded later must be of the same commit.
                bundle = spec.bundle if isinstance(spec.bundle, Path) else Bundle.open(spec.bundle)
                load = partial(Reranker.load, bundle, provider=provider, strict=strict, deployment=deployment)
                reranker = load(precision=precision)
                try:
                    loaded[spec.key] = ServedModel(spec.name, reranker, settings, open_variant=partial(_load_variant, load))
                except InputError:
                    reranker.close()
                    raise
    except BaseException:
        for model in loaded.values():
            model.close()
        raise
    return {spec.name: loaded[spec.key] for spec in specs}


def _load_variant(load: Callable[..., Reranker], precision: Precision) -> Reranker:
    return load(precision=precision)
