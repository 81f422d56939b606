"""What would run a bundle on a machine, and why not the rest: every choice that a load rests on, in one place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from crossforge.profiles import (
    ENGINE_OF,
    EVERYTHING_OFF,
    PREFERENCE,
    EngineRecord,
    ExecutionProvider,
    GpuOptions,
    Precision,
    mismatch,
)
from crossforge.runtime.bundle import Bundle
from crossforge.runtime.engines import EngineChoice, read_engines, select_engine
from crossforge.runtime.machine import Machine
from crossforge.runtime.precision import AUTO, PrecisionChoice, select_precision, why_not
from crossforge.runtime.providers import ProviderPlan, select_providers


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A provider, a variant, and the reasons against the others."""

    plan: ProviderPlan
    engine: EngineRecord | None
    """The TensorRT engine to run, if there is one for this machine."""
    choice: PrecisionChoice
    """The variant that the planned provider runs."""
    gpu: GpuOptions = EVERYTHING_OFF
    """How batches run on a GPU."""

    def explain(self) -> str:
        """One line: the variant and the provider, why not the others, and what is switched on."""
        reasons = f" ({'; '.join(self.choice.reasons)})" if self.choice.reasons else ""
        switches = self.gpu.describe(self.plan.chosen)
        return f"{self.choice.precision}{reasons} on {self.plan.explain()}" + (f", with {switches}" if switches else "")


def decide(
    bundle: Bundle,
    machine: Machine,
    *,
    provider: str = AUTO,
    precision: str = AUTO,
    order: Sequence[ExecutionProvider] = PREFERENCE,
    strict: bool = False,
    allow_host_code: bool = False,
    gpu: GpuOptions = EVERYTHING_OFF,
) -> Decision:
    """Choose what runs a bundle. Reads the sidecars of its engines and no other file; asks no engine and no GPU.

    Args:
        bundle: The bundle.
        machine: Where it is to run.
        provider: ``auto``, or a provider's name.
        precision: ``auto``, or a variant's name.
        order: The providers that ``auto`` may take, best first.
        strict: With a named provider, raise if it cannot run instead of planning another.
        allow_host_code: Whether an engine may embed code for the host.
        gpu: How batches are to run on a GPU.

    Raises:
        InputError: An unknown provider or precision, or a variant that the bundle has not.
        ProviderUnavailableError: Nothing can run here, or not what was named, with ``strict``.
        BundleError: A sidecar cannot be read.
    """
    engine = _choose_engine(bundle, machine, precision, allow_host_code=allow_host_code)
    only = ENGINE_OF.get(Precision(precision)) if precision in bundle.manifest.variants else None
    if only is not None and only not in order:
        order = (*order, only)
    reasons = _bundle_reasons(bundle, machine, precision)
    if engine.record is None:
        reasons[ExecutionProvider.TENSORRT] = engine.reason
    plan = select_providers(provider, machine, order=order, strict=strict, bundle_reasons=reasons)
    if plan.chosen is ExecutionProvider.TENSORRT and engine.record:
        choice = PrecisionChoice(precision=engine.record.spec.precision, reasons=())
    else:
        choice = select_precision(precision, bundle.manifest, plan.chosen, machine)
    return Decision(plan=plan, engine=engine.record, choice=choice, gpu=gpu)


def _bundle_reasons(bundle: Bundle, machine: Machine, precision: str) -> dict[ExecutionProvider, str]:
    """Some engines run their own variants alone, and nothing else runs those."""
    variant = bundle.manifest.variants.get(Precision.INT8_NATIVE)
    if precision in bundle.manifest.variants:
        reasons = {provider: mismatch(provider, Precision(precision)) for provider in ExecutionProvider}
        return {provider: reason for provider, reason in reasons.items() if reason is not None}
    if precision != AUTO:
        return {}  # refused where it is looked up
    reason = (
        f"the bundle has no {Precision.INT8_NATIVE} variant: crossforge quantize BUNDLE --precision {Precision.INT8_NATIVE}"
    )
    if bundle.manifest.embedding is not None:
        reason = "it computes rerankers alone, and the bundle holds a bi-encoder"
    if variant is not None:
        reason = why_not(variant, machine, ExecutionProvider.NATIVE) or ""
    return {ExecutionProvider.NATIVE: reason} if reason else {}


def _choose_engine(bundle: Bundle, machine: Machine, precision: str, *, allow_host_code: bool) -> EngineChoice:
    """Read the sidecars only where a GPU could run an engine: a load on the CPU should not pay for them."""
    if not machine.gpus:
        return EngineChoice(record=None, reason=machine.gpu_reason)
    records = read_engines(bundle)
    return select_engine(records, bundle.manifest, machine, precision=precision, host_code=allow_host_code)
