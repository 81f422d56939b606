"""The TensorRT engines of a bundle: what decides an engine, its key, and the sidecar that says so.

Whoever builds an engine (``export``) and whoever runs it (``runtime``) meet here. An engine lies in the bundle as
``tensorrt/<key>.engine``, its record as ``tensorrt/<key>.json``, and the manifest's ``files`` hold the digests of both.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from enum import StrEnum

from crossforge.profiles.errors import InputError, ManifestError
from crossforge.profiles.jsonio import DecodeError, decode, encode
from crossforge.profiles.manifest import FileRecord, Manifest
from crossforge.profiles.precision import Precision
from crossforge.profiles.shapes import OptimizationProfile

ENGINE_FOLDER = "tensorrt"
"""Where engines lie in a bundle."""
AMPERE_AND_LATER = "sm80+"
"""The target of a hardware-compatible engine of classic TensorRT."""
ENGINE_SCHEMA_VERSION = 1
"""Part of every key: raise it when the same spec comes to be compiled in another way."""
_AMPERE = 80


class EngineBackend(StrEnum):
    """A compiler of engines, and the runtime that its engines need."""

    TENSORRT = "tensorrt"
    """Classic TensorRT: times kernels on the GPU that it builds for."""
    TENSORRT_RTX = "tensorrt-rtx"
    """TensorRT for RTX: compiles ahead of time for named targets, and finishes on the device."""

    @property
    def module(self) -> str:
        """The Python package."""
        return self.value.replace("-", "_")

    @property
    def extra(self) -> str:
        """The crossforge extra that brings it."""
        return "rtx" if self is EngineBackend.TENSORRT_RTX else "tensorrt"


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """Everything that decides what an engine is. Specs that differ anywhere have different keys."""

    precision: Precision
    model: dict[str, str]
    """The variant's ONNX files -> their SHA-256: its graph and its weights."""
    profiles: tuple[OptimizationProfile, ...]
    """In the order in which the engine numbers them."""
    backend: EngineBackend
    compiler_version: str
    """An engine runs under the version that compiled it, unless it is ``version_compatible``."""
    targets: tuple[str, ...]
    """Compute capabilities that it runs on, such as ``sm86``, or :data:`AMPERE_AND_LATER`."""
    gpu: str | None
    """Name of the one GPU model that it was timed for; None if it was compiled ahead of time."""
    platform: str
    """Operating system and processor that run it, such as ``linux-x86_64``."""
    builder_level: int | None
    """How hard the builder tries, 0 to 5; None is its default."""
    workspace_mb: int | None
    """Scratch memory that a layer may use, in MiB; None is all of the GPU's."""
    version_compatible: bool
    hardware_compatible: bool

    @property
    def target(self) -> str:
        """The targets in one word, such as ``sm86`` or ``sm86+sm89``."""
        return "+".join(self.targets)

    def runs_on(self, compute_capability: str) -> bool:
        """Whether a GPU is among the targets.

        Args:
            compute_capability: Such as ``sm86``.
        """
        ampere_or_later = int(compute_capability.removeprefix("sm")) >= _AMPERE
        return compute_capability in self.targets or (AMPERE_AND_LATER in self.targets and ampere_or_later)

    @property
    def key(self) -> str:
        """A hash of every field: 32 hexadecimal digits."""
        document = {"schema_version": ENGINE_SCHEMA_VERSION, "spec": encode(self)}
        text = json.dumps(document, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    @property
    def path(self) -> str:
        """The engine's file, relative to the bundle."""
        return f"{ENGINE_FOLDER}/{self.key}.engine"

    @property
    def record_path(self) -> str:
        """The sidecar's file, relative to the bundle."""
        return f"{ENGINE_FOLDER}/{self.key}.json"


@dataclass(frozen=True, kw_only=True)
class EngineTensor:
    """An input or output of an engine."""

    name: str
    dtype: str
    """As numpy names it, such as ``int64``."""
    shape: tuple[int, ...]
    """-1 where it varies."""


@dataclass(frozen=True, kw_only=True)
class EngineRecord:
    """The sidecar of an engine."""

    schema_version: int = field(default=ENGINE_SCHEMA_VERSION)
    key: str
    spec: EngineSpec
    inputs: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]
    engine: FileRecord
    """Digest and size of the engine's file."""
    build_seconds: float
    crossforge_version: str

    def __post_init__(self) -> None:
        if self.key != self.spec.key:
            raise ValueError(f"the key is {self.key}, but its spec hashes to {self.spec.key}")

    def is_of(self, manifest: Manifest) -> bool:
        """Whether the engine was built from the variant that the bundle holds now."""
        variant = manifest.variants.get(self.spec.precision)
        return variant is not None and self.spec.model == {name: manifest.files[name].sha256 for name in variant.files}

    def to_json(self) -> str:
        """The record as indented JSON text."""
        return json.dumps(encode(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, *, where: str) -> EngineRecord:
        """Read a record.

        Args:
            text: The content of a sidecar.
            where: What an error calls the file.

        Raises:
            ManifestError: It is not JSON, was written by another version, or a field is missing, unknown or wrong.
        """
        fix = "Build the engine again: crossforge build BUNDLE"
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ManifestError(f"{where} is not JSON ({error})", fix=fix) from error
        version = document.get("schema_version") if isinstance(document, dict) else None
        if version != ENGINE_SCHEMA_VERSION:
            raise ManifestError(
                f"{where} has an unknown schema_version", got=version, allowed=ENGINE_SCHEMA_VERSION, fix=fix
            )
        try:
            return decode(cls, document)
        except (DecodeError, InputError) as error:
            raise ManifestError(f"{where} is not a valid engine record ({error})", fix=fix) from error
