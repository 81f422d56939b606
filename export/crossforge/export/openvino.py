"""Variants for OpenVINO: int8 with fixed scales, int8 with scales as tokens come, and bfloat16 of the float32 file.

NNCF, OpenVINO's own compression library, makes both int8 ones. First the last layer is cut to the row that the head reads,
as for every other variant.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from onnx import ModelProto

from crossforge.export.onnx import save_onnx
from crossforge.export.passes import keep_first_row
from crossforge.export.passes.int8_dynamic import refuse_quantized
from crossforge.export.recipe import Settings
from crossforge.profiles import ExecutionProvider, MissingPackageError, Precision, ProviderUnavailableError
from crossforge.profiles.precision import BF16_INSTRUCTION_SETS
from crossforge.runtime.batching import Batch
from crossforge.runtime.machine import Machine
from crossforge.runtime.providers import why_not
from crossforge.runtime.sessions.openvino import ACTIVATION_GROUP, import_openvino

_WEIGHTS = "int8, symmetric, one scale a column"


@dataclass(frozen=True, kw_only=True)
class OpenVinoFiles:
    """What was made."""

    files: tuple[Path, ...]
    """The model first."""
    settings: Settings
    """How, for the manifest."""
    note: str


def check_openvino(precision: Precision, machine: Machine) -> None:
    """Make sure that a variant can be made and measured: what is not measured is not shipped.

    Raises:
        ProviderUnavailableError: OpenVINO is not installed, or the processor has not the arithmetic.
        MissingPackageError: nncf is not installed.
    """
    if reason := why_not(ExecutionProvider.OPENVINO, machine):
        raise ProviderUnavailableError(f"the {precision} variant cannot be measured: {reason}")
    if precision is not Precision.BF16_OPENVINO:
        _import_nncf()
    elif not set(BF16_INSTRUCTION_SETS) & set(machine.instruction_sets):
        raise ProviderUnavailableError(
            f"this processor cannot measure the {precision} variant, which it would compute in float32",
            got=", ".join(machine.instruction_sets) or "no vector instructions",
            allowed=f"one of {', '.join(BF16_INSTRUCTION_SETS)}",
        )


def describe_bf16(path: Path) -> OpenVinoFiles:
    """The variant that computes the float32 file in bfloat16.

    Args:
        path: That file.
    """
    data = path.with_name(path.name + "_data")
    return OpenVinoFiles(
        files=(path, data) if data.is_file() else (path,),
        settings={"method": "bf16", "arithmetic": "bfloat16, of the float32 file"},
        note=f"{path.name}, computed in bfloat16",
    )


def quantize_static(model: ModelProto, batches: Sequence[Batch], path: Path, *, reduce_range: bool = False) -> OpenVinoFiles:
    """Quantize weights and activations, with one fixed scale an activation.

    Args:
        model: A float32 reranker; not changed.
        batches: Calibration pairs, as the runtime batches them.
        path: The ``.xml`` file to write; the weights go beside it.
        reduce_range: Seven bits a weight, so that no processor saturates.

    Raises:
        InputError: The model is quantized already.
        MissingPackageError: openvino or nncf is not installed.
    """
    nncf = _import_nncf()
    overflow = importlib.import_module("nncf.quantization.advanced_parameters")
    advanced = overflow.AdvancedQuantizationParameters(
        overflow_fix=overflow.OverflowFix.ENABLE if reduce_range else overflow.OverflowFix.DISABLE
    )
    with _read(model) as source, _quiet():
        made = nncf.quantize(
            source,
            nncf.Dataset(list(batches)),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(batches),
            advanced_parameters=advanced,
        )
        files = _save(made, path)
    settings: Settings = {
        "method": "static",
        "activations": "int8, one fixed scale a tensor, smoothed (NNCF, transformer scheme)",
        "weights": _WEIGHTS,
        "reduce_range": reduce_range,
        "nncf": importlib.metadata.version("nncf"),
    }
    return OpenVinoFiles(files=files, settings=settings, note=f"NNCF, {len(batches)} calibration batches")


def compress_weights(model: ModelProto, path: Path) -> OpenVinoFiles:
    """Quantize the weights; the session quantizes activations as they come.

    Args:
        model: A float32 reranker; not changed.
        path: The ``.xml`` file to write; the weights go beside it.

    Raises:
        InputError: The model is quantized already.
        MissingPackageError: openvino or nncf is not installed.
    """
    nncf = _import_nncf()
    with _read(model) as source, _quiet():
        files = _save(nncf.compress_weights(source, mode=nncf.CompressWeightsMode.INT8_SYM), path)
    settings: Settings = {
        "method": "dynamic",
        "activations": f"int8, one scale for each {ACTIVATION_GROUP} channels of a token",
        "weights": f"{_WEIGHTS} (NNCF)",
        "nncf": importlib.metadata.version("nncf"),
    }
    return OpenVinoFiles(files=files, settings=settings, note=f"weights by NNCF, activations by {ACTIVATION_GROUP} channels")


@contextlib.contextmanager
def _read(model: ModelProto) -> Iterator[Any]:
    """A model as OpenVINO's; its weights may stay in the file while the block lasts."""
    refuse_quantized(model)
    with tempfile.TemporaryDirectory(prefix="crossforge-") as folder:
        path = Path(folder) / "model.onnx"
        save_onnx(keep_first_row(model).model, path)
        yield import_openvino().Core().read_model(str(path))


def _save(model: Any, path: Path) -> tuple[Path, ...]:
    path.parent.mkdir(parents=True, exist_ok=True)
    import_openvino().save_model(model, str(path), compress_to_fp16=False)
    return path, path.with_suffix(".bin")


def _import_nncf() -> ModuleType:
    """Import nncf with its telemetry off: what is quantized here is nobody else's business."""
    os.environ.setdefault("NNCF_CI", "1")
    try:
        nncf = importlib.import_module("nncf")
    except ImportError as error:
        raise MissingPackageError("nncf", extra="openvino-export", purpose="Quantizing for OpenVINO") from error
    nncf.set_log_level(logging.ERROR)
    return nncf


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep NNCF's progress bars off stdout, which is for documents."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
