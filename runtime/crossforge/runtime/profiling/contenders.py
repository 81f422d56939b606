"""Which variants are measured on which providers, and what keeps the rest out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from crossforge.profiles import (
    ENGINE_OF,
    RUNS_ONLY,
    DeploymentProfile,
    EngineError,
    ExecutionProvider,
    InputError,
    MachineError,
    Manifest,
    Precision,
    ProviderUnavailableError,
    mismatch,
)
from crossforge.runtime.bundle import Bundle
from crossforge.runtime.decision import decide
from crossforge.runtime.machine import Machine
from crossforge.runtime.precision import AUTO
from crossforge.runtime.profiling.measure import Contender
from crossforge.runtime.profiling.report import Skipped
from crossforge.runtime.profiling.stages import Clock, StageRecorder
from crossforge.runtime.providers import why_not
from crossforge.runtime.reranker import Reranker

MEANT_FOR = {
    ExecutionProvider.CPU: (Precision.FP32, Precision.INT8),
    **RUNS_ONLY,
    ExecutionProvider.CUDA: (Precision.FP32, Precision.FP16, Precision.FP16_CUDA, Precision.INT8_QDQ),
    ExecutionProvider.TENSORRT: (Precision.FP32, Precision.FP16, Precision.INT8_QDQ),
}
"""The variants that are measured on a provider without being named."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A variant and where it might run."""

    provider: ExecutionProvider
    precision: Precision
    deployment: Path | None = None
    """The deployment profile to run it by; None for the defaults."""

    def __str__(self) -> str:
        return f"{self.precision} on {self.provider}" + (f" by {self.deployment.name}" if self.deployment else "")


def list_candidates(
    manifest: Manifest,
    machine: Machine,
    *,
    providers: Sequence[ExecutionProvider] = (),
    precisions: Sequence[Precision] = (),
) -> tuple[list[Candidate], list[Skipped]]:
    """What to try on a machine. Pure.

    Args:
        manifest: The bundle's.
        machine: Where to run it.
        providers: Those that were named; none takes every one.
        precisions: Those that were named; none takes what is meant for the provider.

    Raises:
        InputError: A named variant is not in the bundle.
    """
    if absent := [precision for precision in precisions if precision not in manifest.variants]:
        raise InputError(f"the bundle has no {absent[0]} variant", allowed=", ".join(manifest.variants))
    candidates, skipped = [], []
    for provider in providers or ExecutionProvider:
        own = [precision for precision in manifest.variants if ENGINE_OF.get(precision) is provider]
        if provider in RUNS_ONLY and not providers and not own:
            continue  # it runs some variants alone, and the bundle has none of them
        if reason := why_not(provider, machine):
            skipped.append(Skipped(what=provider, why=reason))
            continue
        for precision in precisions or manifest.variants:
            candidate = Candidate(provider=provider, precision=precision)
            if reason := mismatch(provider, precision):
                if providers and precisions:
                    skipped.append(Skipped(what=str(candidate), why=reason))
            elif not precisions and precision not in MEANT_FOR[provider]:
                skipped.append(
                    Skipped(what=str(candidate), why=f"it is not made for this provider; name it: --precision {precision}")
                )
            else:
                candidates.append(candidate)
    return candidates, skipped


def deployed_candidate(bundle: Bundle, machine: Machine, path: Path) -> Candidate:
    """What a deployment profile runs on a machine.

    Args:
        bundle: The bundle.
        machine: Where to run it.
        path: The profile (TOML).

    Raises:
        InputError: The profile cannot be read, or is for a variant that the bundle has not.
        ProviderUnavailableError: None of its providers runs here.
    """
    profile = DeploymentProfile.from_toml(path)
    decision = decide(bundle, machine, precision=profile.precision or AUTO, order=profile.providers, strict=True)
    return Candidate(provider=decision.plan.chosen, precision=decision.choice.precision, deployment=path)


def size_bytes(bundle: Bundle, machine: Machine, candidate: Candidate) -> int:
    """Bytes on disk of what a candidate loads.

    Raises:
        ProviderUnavailableError: It cannot run on this machine.
    """
    if candidate.provider is not ExecutionProvider.TENSORRT:
        return bundle.size_bytes(candidate.precision)
    decision = decide(bundle, machine, provider=candidate.provider, precision=candidate.precision, strict=True)
    if decision.engine is None:
        raise ProviderUnavailableError("no TensorRT engine was chosen")
    return decision.engine.engine.size_bytes


def open_contenders(
    bundle: Bundle, candidates: Sequence[Candidate], stack: ExitStack, clock: Clock
) -> tuple[list[Contender], list[Skipped]]:
    """Load what loads.

    Args:
        bundle: What to load.
        candidates: What to try.
        stack: Closes the rerankers.
        clock: What their stages are timed with.

    Raises:
        BundleError: A file is missing or altered.
    """
    contenders, skipped = [], []
    for candidate in candidates:
        recorder = StageRecorder(clock)
        try:
            reranker = Reranker.load(
                bundle,
                provider=candidate.provider,
                precision=candidate.precision,
                strict=True,
                deployment=None if candidate.deployment is None else DeploymentProfile.from_toml(candidate.deployment),
                timed=recorder,
            )
        except (EngineError, MachineError) as error:
            skipped.append(Skipped(what=str(candidate), why=str(error)))
            continue
        stack.enter_context(reranker)
        contenders.append(
            Contender(
                provider=candidate.provider,
                precision=candidate.precision,
                deployment=candidate.deployment,
                reranker=reranker,
                recorder=recorder,
            )
        )
    return contenders, skipped


def refuse_none(skipped: Sequence[Skipped]) -> NoReturn:
    """Say why nothing can be measured.

    Raises:
        ProviderUnavailableError: Always.
    """
    reasons = "; ".join(f"{item.what}: {item.why}" for item in skipped)
    raise ProviderUnavailableError(
        f"nothing can be measured on this machine ({reasons})", fix="Run `crossforge doctor` for the whole picture."
    )
