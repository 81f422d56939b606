"""The TensorRT engines that a bundle holds, read from their sidecars. No engine is opened."""

from __future__ import annotations

from pathlib import PurePosixPath

from crossforge.profiles import ENGINE_FOLDER, EngineRecord, IntegrityError
from crossforge.runtime.bundle import Bundle


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
