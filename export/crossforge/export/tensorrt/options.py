"""How engines are built."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from crossforge.profiles import EngineBackend, InputError, Precision

CURRENT = "current"
"""The target that is this machine's own GPU."""
_BUILDER_LEVELS = range(6)


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Everything about an engine but its model and its shapes."""

    targets: tuple[str, ...] = (CURRENT,)
    """``current``, or compute capabilities such as ``sm86``."""
    precision: Precision = Precision.FP16
    """The variant to compile."""
    backend: EngineBackend | None = None
    """None takes the one that suits the targets."""
    builder_level: int | None = None
    """How hard the builder tries, 0 to 5; None is its default. Without effect on what TensorRT for RTX 1.7 compiles."""
    workspace_mb: int | None = None
    """Scratch memory that a layer may use, in MiB; None is all of the GPU's."""
    version_compatible: bool = False
    """Let later versions run the engine. Classic TensorRT only; such engines hold code that the host runs."""
    hardware_compatible: bool = False
    """One engine for several GPUs: Ampere and later with classic TensorRT, all of the targets with TensorRT for RTX."""
    force: bool = False
    """Build again what is there."""
    prune: bool = False
    """When all is built, remove the engines of variants that the bundle holds no more."""
    timing_cache: Path | None = None
    """Folder where classic TensorRT keeps the timings of kernels between builds; None keeps none."""

    def __post_init__(self) -> None:
        if not self.targets:
            raise InputError("there is no target", allowed="current, or compute capabilities such as sm86")
        if self.builder_level is not None and self.builder_level not in _BUILDER_LEVELS:
            raise InputError("unknown builder level", got=self.builder_level, allowed="0 (quickest) to 5 (most thorough)")
        if self.workspace_mb is not None and self.workspace_mb < 1:
            raise InputError("workspace_mb is too small", got=self.workspace_mb, allowed="1 or more")


def parse_targets(text: str) -> tuple[str, ...]:
    """Targets from a list with commas, each once, in lower case.

    Raises:
        InputError: The list is empty.
    """
    targets = tuple(dict.fromkeys(name for part in text.split(",") if (name := part.strip().lower())))
    if not targets:
        raise InputError("there is no target", got=repr(text), allowed="current, or compute capabilities such as sm86,sm89")
    return targets
