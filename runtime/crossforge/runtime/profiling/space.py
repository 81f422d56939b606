"""What a bundle can be run with on a machine, and why not the rest."""

from __future__ import annotations

from dataclasses import dataclass

from crossforge.profiles import ExecutionProvider, GateError, Precision, ProviderUnavailableError, mismatch
from crossforge.runtime.bundle import Bundle
from crossforge.runtime.decision import decide
from crossforge.runtime.machine import Machine
from crossforge.runtime.precision import why_not
from crossforge.runtime.profiling.report import Skipped
from crossforge.runtime.profiling.settings import QualityLimits, Setting, candidate_settings
from crossforge.runtime.providers import why_not as why_not_provider
from crossforge.runtime.scoring import default_budget_tokens


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """What may be measured on a machine."""

    default: Setting
    settings: tuple[Setting, ...]
    allows_default: bool
    """Whether the default is within the limits of quality."""
    skipped: tuple[Skipped, ...]


def find_space(bundle: Bundle, machine: Machine, limits: QualityLimits) -> SearchSpace:
    """The settings that a bundle can have on a machine: every variant on every provider that runs it, whichever those are.

    Reads the engines' sidecars and runs nothing.

    Raises:
        GateError: No variant is within the limits.
        ProviderUnavailableError: Nothing can run here.
    """
    skipped: dict[str, str] = {}
    decision = decide(bundle, machine)
    variants: dict[ExecutionProvider, list[Precision]] = {}
    openvino = why_not_provider(ExecutionProvider.OPENVINO, machine)  # which no choice but a measured one should fall on
    others = () if openvino else (ExecutionProvider.OPENVINO,)
    for provider in dict.fromkeys((*decision.plan.candidates, *others)):
        variants[provider] = []
        for precision, variant in bundle.manifest.variants.items():
            if mismatch(provider, precision):
                continue  # some engines run their own variants alone, and nothing else runs those
            reason = (
                limits.why_not(variant.parity)
                or why_not(variant, machine, provider)
                or _why_it_does_not_run(bundle, machine, provider, precision)
            )
            if reason is None:
                variants[provider].append(precision)
            else:
                skipped[f"{precision} on {provider}"] = reason
    skipped |= {str(rejection.provider): rejection.reason for rejection in decision.plan.rejected}
    if openvino is not None:
        skipped[ExecutionProvider.OPENVINO] = openvino
    reasons = tuple(Skipped(what=what, why=why) for what, why in skipped.items())
    if not any(variants.values()):
        raise GateError(
            f"no variant of {bundle.path} may be chosen ({'; '.join(f'{item.what}: {item.why}' for item in reasons)})",
            fix="Loosen the limits, or add a variant with crossforge quantize.",
        )
    default = _default_setting(decision.plan.chosen, decision.choice.precision, machine)
    allowed = default.precision in variants[default.provider]
    settings = candidate_settings(variants, cores=machine.usable_cores, also=(default,) if allowed else ())
    return SearchSpace(default=default, settings=settings, allows_default=allowed, skipped=reasons)


def _default_setting(provider: ExecutionProvider, precision: Precision, machine: Machine) -> Setting:
    workers = machine.usable_cores if provider.is_cpu else 1
    return Setting(provider=provider, precision=precision, workers=workers, budget_tokens=default_budget_tokens(provider))


def _why_it_does_not_run(bundle: Bundle, machine: Machine, provider: ExecutionProvider, precision: Precision) -> str | None:
    """A provider that runs the bundle need not run every variant of it: a TensorRT engine is of one."""
    try:
        decide(bundle, machine, provider=provider, precision=precision, strict=True)
    except ProviderUnavailableError as error:
        return error.what
    return None
