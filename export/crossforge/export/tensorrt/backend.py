"""Which compiler builds an engine, and for which targets. Pure, but for the import."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from crossforge.export.tensorrt.device import Device
from crossforge.export.tensorrt.options import CURRENT, BuildOptions
from crossforge.profiles import AMPERE_AND_LATER, EngineBackend, InputError, MachineError, MissingPackageError

_AHEAD_OF_TIME = f"TensorRT for RTX needs no GPU: --backend {EngineBackend.TENSORRT_RTX} --target sm86,sm89"
_OLDEST_MAJOR = {EngineBackend.TENSORRT: 10, EngineBackend.TENSORRT_RTX: 1}
"""Before it, networks were not strongly typed, and a float16 graph could silently become a float32 engine."""


@dataclass(frozen=True, kw_only=True)
class TargetPlan:
    """What one engine is built for."""

    targets: tuple[str, ...]
    gpu: str | None
    """The GPU model that it is timed for; None if it is compiled ahead of time."""


def choose_backend(options: BuildOptions, installed: Sequence[EngineBackend]) -> EngineBackend:
    """The named backend, or the one that suits the targets.

    Named compute capabilities are compiled ahead of time, which only TensorRT for RTX does. For this machine's own GPU
    classic TensorRT is preferred, which times kernels on it.
    """
    if options.backend is not None:
        return options.backend
    only_current = all(target == CURRENT for target in options.targets)
    if only_current and EngineBackend.TENSORRT in installed:
        return EngineBackend.TENSORRT
    return EngineBackend.TENSORRT_RTX


def installed_backends() -> tuple[EngineBackend, ...]:
    """Those whose package is there; nothing is imported."""
    return tuple(backend for backend in EngineBackend if importlib.util.find_spec(backend.module) is not None)


def load_backend(backend: EngineBackend) -> Any:
    """Import a compiler.

    Raises:
        MissingPackageError: It is not installed.
        MachineError: It cannot be loaded, or is too old.
    """
    if importlib.util.find_spec(backend.module) is None:
        raise MissingPackageError(backend.value, extra=backend.extra, purpose="Building engines")
    try:
        module = importlib.import_module(backend.module)
    except (ImportError, OSError) as error:  # OSError: a shared library of it
        raise MachineError(
            f"{backend} is installed but cannot be loaded ({error})",
            fix=f"Reinstall it: pip install --force-reinstall {backend}",
        ) from error
    oldest = _OLDEST_MAJOR[backend]
    if int(module.__version__.partition(".")[0]) < oldest:
        raise MachineError(
            f"{backend} is too old", got=module.__version__, allowed=f"{oldest}.0 or later", fix=f"pip install -U {backend}"
        )
    return module


def find_needed_device(options: BuildOptions, backend: EngineBackend, find_device: Callable[[], Device]) -> Device | None:
    """This machine's GPU, if building takes one.

    Raises:
        MachineError: It does, and there is none.
    """
    if backend is EngineBackend.TENSORRT_RTX and CURRENT not in options.targets:
        return None
    try:
        return find_device()
    except MissingPackageError:
        raise
    except MachineError as error:
        if backend is EngineBackend.TENSORRT_RTX:
            raise
        raise MachineError(
            f"TensorRT builds only on the GPU that it builds for; {error.what}", fix=_AHEAD_OF_TIME
        ) from error


def plan_targets(
    options: BuildOptions, backend: EngineBackend, allowed: Sequence[str], device: Device | None
) -> tuple[TargetPlan, ...]:
    """What to build, an entry an engine.

    ``current`` becomes the compute capability of this machine's GPU, so that an engine that was compiled elsewhere for
    that capability counts as built.

    Args:
        options: As the caller gave them.
        backend: The compiler.
        allowed: Targets that it compiles for ahead of time; see :func:`ahead_of_time_targets`.
        device: As :func:`find_needed_device` returns it.

    Raises:
        InputError: A target is unknown, or the backend cannot do what an option asks for.
        MachineError: TensorRT for RTX does not compile for this machine's GPU.
    """
    if device is not None and backend is EngineBackend.TENSORRT:
        return (_plan_classic(options, device),)
    if options.version_compatible:
        raise InputError(
            "TensorRT for RTX makes no version-compatible engines",
            got="--version-compatible",
            allowed=f"with --backend {EngineBackend.TENSORRT}",
            fix="Its engines compile in seconds: build them again after an upgrade.",
        )
    if unknown := [target for target in options.targets if target not in (CURRENT, *allowed)]:
        raise InputError("unknown target", got=unknown[0], allowed=", ".join((CURRENT, *allowed)))
    own = "" if device is None else device.compute_capability
    if device is not None and own not in allowed:
        raise MachineError(
            f"TensorRT for RTX does not compile for {device.name}",
            got=own,
            allowed=", ".join(allowed),
            fix=f"Use --backend {EngineBackend.TENSORRT}.",
        )
    targets = tuple(dict.fromkeys(own if target == CURRENT else target for target in options.targets))
    if options.hardware_compatible:
        return (TargetPlan(targets=targets, gpu=None),)
    return tuple(TargetPlan(targets=(target,), gpu=None) for target in targets)


def ahead_of_time_targets(trt: Any) -> tuple[str, ...]:
    """The targets that a compiler has without their GPU, such as ``sm86``; none with classic TensorRT."""
    names = getattr(getattr(trt, "ComputeCapability", None), "__members__", ())
    return tuple(name.lower() for name in names if name.startswith("SM"))


def _plan_classic(options: BuildOptions, device: Device) -> TargetPlan:
    if others := [target for target in options.targets if target not in (CURRENT, device.compute_capability)]:
        raise InputError(
            "TensorRT builds only for the GPU of this machine",
            got=others[0],
            allowed=f"{CURRENT}, {device.compute_capability}",
            fix=_AHEAD_OF_TIME,
        )
    if options.hardware_compatible:
        return TargetPlan(targets=(AMPERE_AND_LATER,), gpu=None)
    return TargetPlan(targets=(device.compute_capability,), gpu=device.name)
