"""Which of a bundle's variants runs. Pure: facts in, choice out."""

from __future__ import annotations

from dataclasses import dataclass

from crossforge.profiles import ExecutionProvider, InputError, Manifest, Precision, Variant
from crossforge.runtime.machine import Machine

AUTO = "auto"

_FASTEST_FIRST = {
    ExecutionProvider.CPU: (Precision.INT8, Precision.FP32),
    ExecutionProvider.NATIVE: (Precision.INT8_NATIVE,),
    ExecutionProvider.OPENVINO: (
        Precision.INT8_OPENVINO,
        Precision.INT8_DYNAMIC_OPENVINO,
        Precision.BF16_OPENVINO,
        Precision.FP32,
    ),
    ExecutionProvider.CUDA: (Precision.FP16_CUDA, Precision.FP16, Precision.FP32),
    ExecutionProvider.TENSORRT: (Precision.FP16, Precision.FP32),
}
_UNMENTIONED = (Precision.FP16_CUDA,)
"""Whoever did not ask for it when the bundle was made need not hear that it is missing."""


@dataclass(frozen=True, kw_only=True)
class PrecisionChoice:
    """The variant that runs, and why not a faster one."""

    precision: Precision
    reasons: tuple[str, ...]


def select_precision(wanted: str, manifest: Manifest, provider: ExecutionProvider, machine: Machine) -> PrecisionChoice:
    """Choose a variant.

    ``auto`` takes the fastest one for the provider that passed its gate and whose arithmetic is exact on this processor.
    A named variant is taken as it is, if the bundle has it.

    Raises:
        InputError: ``wanted`` is no precision, or the bundle has no such variant.
    """
    present = ", ".join(manifest.variants)
    if wanted != AUTO:
        try:
            precision = Precision(wanted)
        except ValueError:
            allowed = ", ".join([AUTO, *Precision])
            raise InputError("unknown precision", got=repr(wanted), allowed=allowed) from None
        if precision not in manifest.variants:
            raise InputError(f"the bundle has no {precision} variant", got=wanted, allowed=present)
        return PrecisionChoice(precision=precision, reasons=())
    reasons: list[str] = []
    for precision in _FASTEST_FIRST[provider]:
        variant = manifest.variants.get(precision)
        if variant is None and precision in _UNMENTIONED:
            continue
        reason = "not in the bundle" if variant is None else why_not(variant, machine, provider)
        if reason is None:
            return PrecisionChoice(precision=precision, reasons=tuple(reasons))
        reasons.append(f"not {precision}: {reason}")
    raise InputError(
        f"no variant of the bundle suits {provider} ({'; '.join(reasons)})",
        allowed=present,
        fix="Name one with precision=.",
    )


def why_not(variant: Variant, machine: Machine, provider: ExecutionProvider) -> str | None:
    """The reason for which ``auto`` passes a variant over; None if it does not."""
    if not variant.parity.passed:
        return "it failed its parity gate when the bundle was made"
    judged_on = variant.quantization.get("judged_on")
    if judged_on not in (None, provider):
        return f"it was judged on {judged_on} alone; make it anew here, to have it judged on {provider}"
    needed = variant.instruction_sets if provider.is_cpu else ()
    if needed and not set(needed) & set(machine.instruction_sets):
        what = "its integer products saturate" if "int8" in variant.path else "its arithmetic is not to be had"
        return f"{what} on this processor, which has none of {', '.join(needed)}"
    return None
