"""Which execution provider runs a bundle, and why not the others. Pure: facts in, plan out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from crossforge.profiles import PREFERENCE, ExecutionProvider, InputError, ProviderUnavailableError
from crossforge.runtime.machine import Machine
from crossforge.runtime.precision import AUTO
from crossforge.runtime.sessions.native.library import BUILD_COMMAND, NATIVE_INSTRUCTION_SETS


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """A provider that cannot run here, and the reason."""

    provider: ExecutionProvider
    reason: str


@dataclass(frozen=True, kw_only=True)
class ProviderPlan:
    """The providers to try in order, and those that were left out."""

    candidates: tuple[ExecutionProvider, ...]
    """Best first; the first is what should run."""
    rejected: tuple[Rejection, ...]
    wanted: ExecutionProvider | None
    """What the caller named; None for ``auto``."""

    @property
    def chosen(self) -> ExecutionProvider:
        """The provider that should run."""
        return self.candidates[0]

    @property
    def is_fallback(self) -> bool:
        """Whether the caller named a provider and would get another."""
        return self.wanted is not None and self.chosen is not self.wanted

    def explain(self) -> str:
        """One line: what was taken, and why not what ``auto`` would rather have."""
        providers: dict[str, list[str]] = {}
        better = {self.wanted, *(PREFERENCE[: PREFERENCE.index(self.chosen)] if self.chosen in PREFERENCE else ())}
        for rejection in (rejection for rejection in self.rejected if rejection.provider in better):
            providers.setdefault(rejection.reason, []).append(rejection.provider)
        reasons = "; ".join(f"not {' or '.join(names)}: {reason}" for reason, names in providers.items())
        return f"{self.chosen}" + (f" ({reasons})" if reasons else "")


def select_providers(
    wanted: str,
    machine: Machine,
    *,
    order: Sequence[ExecutionProvider] = PREFERENCE,
    strict: bool = False,
    bundle_reasons: Mapping[ExecutionProvider, str] | None = None,
) -> ProviderPlan:
    """Choose where a bundle runs.

    Args:
        wanted: ``auto`` for the best that works, or a provider's name.
        machine: The facts; see :func:`crossforge.runtime.machine.inspect_machine`.
        order: The providers that ``auto`` may take, best first.
        strict: With a named provider, raise if it cannot run instead of planning another.
        bundle_reasons: Providers that could run here, but not this bundle, and why.

    Raises:
        InputError: ``wanted`` is not a provider.
        ProviderUnavailableError: Nothing can run here, or the named provider cannot and ``strict`` is set.
    """
    named = _parse(wanted)
    considered = tuple(order) if named is None else (named,) if strict else (named, *_fallbacks(named))
    candidates: list[ExecutionProvider] = []
    rejected: list[Rejection] = []
    for provider in considered:
        reason = why_not(provider, machine) or (bundle_reasons or {}).get(provider)
        if reason is None:
            candidates.append(provider)
        else:
            rejected.append(Rejection(provider=provider, reason=reason))
    if not candidates:
        reasons = "; ".join(f"{rejection.provider}: {rejection.reason}" for rejection in rejected)
        subject = f"the execution provider {named} cannot run here" if named else "no execution provider can run here"
        raise ProviderUnavailableError(f"{subject} ({reasons})", fix="Run `crossforge doctor` for the whole picture.")
    return ProviderPlan(candidates=tuple(candidates), rejected=tuple(rejected), wanted=named)


def why_not(provider: ExecutionProvider, machine: Machine) -> str | None:
    """The first reason for which a provider cannot run on a machine; None if it can."""
    if provider is ExecutionProvider.NATIVE:
        return _why_not_native(machine)
    if provider is ExecutionProvider.OPENVINO:
        return None if machine.openvino_packages else 'OpenVINO is not installed: pip install "crossforge[openvino]"'
    if provider is not ExecutionProvider.CPU and not machine.gpus:
        return machine.gpu_reason or "no NVIDIA GPU is visible"
    if provider is ExecutionProvider.TENSORRT:
        if machine.tensorrt_packages:
            return None
        return 'TensorRT is not installed: pip install "crossforge[tensorrt]", or "crossforge[rtx]"'
    if not machine.onnxruntime_packages:
        extra = "gpu" if provider is ExecutionProvider.CUDA else "cpu"
        return f'onnxruntime is not installed: pip install "crossforge[{extra}]"'
    if provider.onnxruntime_name not in machine.onnxruntime_providers:
        if provider is ExecutionProvider.CPU:
            return "the installed onnxruntime is damaged: reinstall it"
        installed = ", ".join(machine.onnxruntime_packages)
        return f'{installed} is built without it: pip uninstall onnxruntime, then pip install "crossforge[gpu]"'
    return None


def _fallbacks(named: ExecutionProvider) -> tuple[ExecutionProvider, ...]:
    """What may run instead: all that ``auto`` would take after it."""
    return PREFERENCE[PREFERENCE.index(named) + 1 :] if named in PREFERENCE else (ExecutionProvider.CPU,)


def _why_not_native(machine: Machine) -> str | None:
    if not set(NATIVE_INSTRUCTION_SETS) & set(machine.instruction_sets):
        return f"this processor has none of {', '.join(NATIVE_INSTRUCTION_SETS)}"
    return None if machine.native_engine else f"it is not compiled here: {BUILD_COMMAND}"


def _parse(wanted: str) -> ExecutionProvider | None:
    if wanted == AUTO:
        return None
    try:
        return ExecutionProvider(wanted)
    except ValueError:
        allowed = ", ".join([AUTO, *ExecutionProvider])
        raise InputError("unknown execution provider", got=repr(wanted), allowed=allowed) from None
