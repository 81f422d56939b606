"""Putting engines into a bundle so that a kill at any moment leaves a bundle that verifies."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import importlib.metadata
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crossforge.export.tensorrt.compiler import CompiledEngine
from crossforge.profiles import (
    ENGINE_FOLDER,
    MANIFEST_NAME,
    BundleError,
    EngineRecord,
    EngineSpec,
    FileRecord,
    InputError,
    IntegrityError,
)
from crossforge.runtime.bundle import Bundle
from crossforge.runtime.engines import read_engine, read_engines

_PART = ".part"


def find_engine(path: Path, spec: EngineSpec) -> EngineRecord | None:
    """The record of an engine that is in the bundle whole; None if it has to be built."""
    bundle = Bundle.open(path)
    if spec.record_path not in bundle.manifest.files:
        return None
    try:
        bundle.check((spec.path, spec.record_path))
        record = read_engine(bundle, spec.record_path)
    except BundleError:  # damaged, or of another schema: built again
        return None
    return record if record.engine == bundle.manifest.files[spec.path] else None


def store_engine(path: Path, spec: EngineSpec, compiled: CompiledEngine, *, build_seconds: float) -> EngineRecord:
    """Write an engine and its sidecar, and record both in the manifest.

    Each file is written beside its place and renamed into it, and the manifest comes last. An engine that is replaced is
    struck from the manifest first. So at no moment does the manifest name a file that is not there or is another.

    Raises:
        InputError: The bundle cannot be written to.
        IntegrityError: The variant was made anew while the engine was compiled.
    """
    record = EngineRecord(
        key=spec.key,
        spec=spec,
        inputs=compiled.inputs,
        outputs=compiled.outputs,
        engine=_record(compiled.plan),
        build_seconds=round(build_seconds, 2),
        crossforge_version=importlib.metadata.version("crossforge"),
    )
    sidecar = record.to_json().encode()
    try:
        with _locked(path):
            if not record.is_of(Bundle.open(path).manifest):
                raise IntegrityError(f"the {spec.precision} variant of {path} changed during the build", fix="Build again.")
            (path / ENGINE_FOLDER).mkdir(exist_ok=True)
            leftovers = list((path / ENGINE_FOLDER).glob(f"*{_PART}"))  # of a build that was killed
            struck = (spec.path, spec.record_path, *(f"{ENGINE_FOLDER}/{leftover.name}" for leftover in leftovers))
            _rewrite_manifest(path, dict.fromkeys(struck))
            for leftover in leftovers:
                leftover.unlink(missing_ok=True)  # writing the manifest has just used up its own
            _write(path, spec.path, compiled.plan)
            _write(path, spec.record_path, sidecar)
            _rewrite_manifest(path, {spec.path: record.engine, spec.record_path: _record(sidecar)})
    except OSError as error:
        raise InputError(f"cannot write to {path} ({error.strerror or error})") from error
    return record


def prune_engines(path: Path) -> tuple[EngineRecord, ...]:
    """Remove the engines that were built from variants which the bundle holds no more.

    Of the bundle's files only those go that the manifest names and a sidecar says are such an engine. They are struck from
    the manifest first, so that a kill leaves a bundle that verifies.

    Returns:
        The engines that were removed.

    Raises:
        BundleError: There is no bundle, or a sidecar cannot be read: nothing is removed then.
        InputError: The bundle cannot be written to.
    """
    try:
        with _locked(path):
            bundle = Bundle.open(path)
            stale = tuple(record for record in read_engines(bundle) if not record.is_of(bundle.manifest))
            named = [name for record in stale for name in (record.spec.path, record.spec.record_path)]
            names = [name for name in named if name in bundle.manifest.files]
            _rewrite_manifest(path, dict.fromkeys(names))
            for name in names:
                (path / name).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {path} ({error.strerror or error})") from error
    return stale


def _record(content: bytes | memoryview) -> FileRecord:
    return FileRecord(sha256=hashlib.sha256(content).hexdigest(), size_bytes=memoryview(content).nbytes)


def _rewrite_manifest(path: Path, changes: dict[str, FileRecord | None]) -> None:
    """Record files, or strike those that have no record any more; nothing is written if nothing changes."""
    manifest = Bundle.open(path).manifest
    kept = {name: record for name, record in manifest.files.items() if name not in changes}
    files = {**kept, **{name: record for name, record in changes.items() if record is not None}}
    if files != manifest.files:
        text = dataclasses.replace(manifest, files=dict(sorted(files.items()))).to_json()
        _write(path, MANIFEST_NAME, text.encode())


def _write(path: Path, name: str, content: bytes | memoryview) -> None:
    """Write a file of the bundle at ``path``: never in place, which a copy of the bundle may share."""
    part = path / ENGINE_FOLDER / f"{Path(name).name}{_PART}"
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path / name)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other builds out: each reads the manifest and writes it back."""
    folder = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)  # which unlocks
