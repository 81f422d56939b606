"""The TensorRT engines that a bundle holds, read from their sidecars, and which of them a machine can run.

No engine is opened: the choice is made of facts alone.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from crossforge.profiles import ENGINE_FOLDER, EngineRecord, IntegrityError, Manifest, Precision
from crossforge.runtime.bundle import Bundle
from crossforge.runtime.machine import Machine
from crossforge.runtime.precision import AUTO

_FASTEST_FIRST = (Precision.FP16, Precision.INT8_QDQ, Precision.FP32)
"""Not measured yet; int8 of a small model may well be faster than float16."""


@dataclass(frozen=True, kw_only=True)
class EngineChoice:
    """The engine that runs, or why none does."""

    record: EngineRecord | None
    reason: str
    """Why ``record`` is None, in words; blank if it is not."""


def select_engine(
    records: Sequence[EngineRecord], manifest: Manifest, machine: Machine, *, precision: str = AUTO, host_code: bool = False
) -> EngineChoice:
    """Choose the engine to run on a machine's first GPU. Pure.

    Args:
        records: The bundle's engines.
        manifest: The bundle's manifest.
        machine: A machine with a GPU.
        precision: ``auto``, or the variant that must run.
        host_code: Whether an engine may embed code for the host.
    """
    reasons: dict[str, None] = {}
    wanted = [record for record in records if precision in (AUTO, record.spec.precision)]
    for record in sorted(wanted, key=lambda record: _FASTEST_FIRST.index(record.spec.precision)):
        reason = why_not_engine(record, manifest, machine, host_code=host_code)
        if reason is None:
            return EngineChoice(record=record, reason="")
        reasons[reason] = None
    if not wanted:
        kind = "" if precision == AUTO else f"{precision} "
        reasons[f"the bundle has no {kind}engine: crossforge build BUNDLE"] = None
    return EngineChoice(record=None, reason="; ".join(reasons))


def why_not_engine(record: EngineRecord, manifest: Manifest, machine: Machine, *, host_code: bool = False) -> str | None:
    """The first reason for which an engine cannot run on a machine's first GPU; None if it can."""
    spec, name = record.spec, f"engine {record.key[:12]}"
    target, gpu = machine.gpu_targets[0], machine.gpus[0]
    here = f"{platform.system().lower()}-{platform.machine().lower()}"
    installed = dict(package.split(" ", 1) for package in machine.tensorrt_packages)
    if not record.is_of(manifest):
        return f"{name} was built from another model than the bundle's {spec.precision} variant"
    if not manifest.variants[spec.precision].parity.passed:
        return f"{name} is of the {spec.precision} variant, which failed its parity gate"
    if spec.platform != here:
        return f"{name} is for {spec.platform}, this is {here}"
    if not spec.runs_on(target):
        return f"{name} is for {spec.target}, this GPU is {target}"
    if spec.gpu not in (None, gpu):
        return f"{name} was timed on {spec.gpu}, this is {gpu}"
    if spec.backend not in installed:
        return f'{spec.backend} is not installed: pip install "crossforge[{spec.backend.extra}]"'
    if spec.version_compatible and not host_code:
        return f"{name} embeds code for the host, which is loaded only on request (allow_host_code)"
    if installed[spec.backend] != spec.compiler_version and not spec.version_compatible:
        return f"{name} was compiled by {spec.backend} {spec.compiler_version}, installed is {installed[spec.backend]}"
    return None


def read_engines(bundle: Bundle) -> tuple[EngineRecord, ...]:
    """Every engine that the manifest records, by target and precision.

    Engines of a variant that was made anew since are among them; :meth:`EngineRecord.is_of` tells.

    Raises:
        IntegrityError: A sidecar is missing.
        ManifestError: A sidecar cannot be understood.
    """
    records = [read_engine(bundle, name) for name in bundle.manifest.files if _is_sidecar(name)]
    return tuple(sorted(records, key=lambda record: (record.spec.target, record.spec.precision, record.key)))


def read_engine(bundle: Bundle, name: str) -> EngineRecord:
    """One sidecar.

    Args:
        bundle: The bundle that holds it.
        name: Its path relative to the bundle.

    Raises:
        IntegrityError: It is missing or cannot be read.
        ManifestError: It cannot be understood.
    """
    bundle.provide((name,))
    path = bundle.path / name
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise IntegrityError(
            f"cannot read {path} ({error})", fix="Build the engine again: crossforge build BUNDLE"
        ) from error
    return EngineRecord.from_json(text, where=str(path))


def _is_sidecar(name: str) -> bool:
    path = PurePosixPath(name)
    return str(path.parent) == ENGINE_FOLDER and path.suffix == ".json"
