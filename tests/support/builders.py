"""Valid parts to alter: a manifest, a variant, a machine, a reranker without a model, a bundle on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from crossforge.profiles import (
    MANIFEST_NAME,
    Activation,
    EngineBackend,
    EngineRecord,
    EngineSpec,
    EngineTensor,
    FileRecord,
    GoldenPair,
    Manifest,
    OptimizationProfile,
    ParityReport,
    Precision,
    Scoring,
    ShapeRange,
    Source,
    Truncation,
    TruncationSide,
    Variant,
)
from crossforge.runtime import FakeSession, PairTokenizer, Reranker
from crossforge.runtime.bundle import TOKENIZER_NAME, record_file
from crossforge.runtime.machine import Machine
from support.families import BERT_TEMPLATE, PAD_TOKEN_IDS, TEMPLATES, make_tokenizer
from support.mean_model import MeanModel

GOLDEN_TEXTS = (
    ("where is the city", "berlin is the city where people live"),
    ("where is the city", "a passage"),
    ("query", ""),
)
TRUNCATION = Truncation(max_length=64, query_max_length=16, side=TruncationSide.RIGHT)


def make_parity(**overrides: Any) -> ParityReport:
    figures: dict[str, Any] = {
        "reference": "pytorch",
        "pairs_sha256": "1" * 64,
        "queries": 2,
        "pairs": 20,
        "max_abs_diff": 1e-6,
        "mean_abs_diff": 1e-7,
        "kendall_tau": 1.0,
        "top1_agreement": 1.0,
        "top10_overlap": 1.0,
        "ties_created": 0,
        "non_finite": 0,
        "quality": None,
        "passed": True,
    }
    return ParityReport(**figures | overrides)


def make_variant(precision: Precision = Precision.FP32, **overrides: Any) -> Variant:
    path = precision.path
    fields: dict[str, Any] = {
        "path": path,
        "files": (path,),
        "opset": 17,
        "quantization": {"method": "dynamic", "bits": 8} if precision is Precision.INT8 else {},
        "instruction_sets": ("avx512_vnni", "arm64") if precision is Precision.INT8 else (),
        "golden_tolerance": 1e-4,
        "parity": make_parity(),
    }
    return Variant(**fields | overrides)


def make_scoring(count: int = 1, /, **overrides: Any) -> Scoring:
    fields: dict[str, Any] = {
        "labels": tuple(f"LABEL_{i}" for i in range(count)),
        "activation": Activation.SIGMOID if count == 1 else Activation.SOFTMAX,
        "ranking_label": 0,
    }
    return Scoring(**fields | overrides)


def make_manifest(**overrides: Any) -> Manifest:
    variants = overrides.get("variants", {Precision.FP32: make_variant()})
    recorded = {TOKENIZER_NAME, *(name for variant in variants.values() for name in (variant.path, *variant.files))}
    fields: dict[str, Any] = {
        "source": Source(id="tiny", revision=None, weights_sha256="2" * 64),
        "architecture": "TinyForSequenceClassification",
        "model_type": "tiny",
        "input_names": ("input_ids", "attention_mask", "token_type_ids"),
        "pair_template": BERT_TEMPLATE,
        "pad_token_id": 0,
        "truncation": TRUNCATION,
        "scoring": make_scoring(),
        "variants": variants,
        "golden": (),
        "tools": {"crossforge": "0.1.0"},
        "files": {name: FileRecord(sha256="3" * 64, size_bytes=1) for name in sorted(recorded)},
    }
    return Manifest(**fields | overrides)


def make_machine(**overrides: Any) -> Machine:
    """A CPU box with VNNI and onnxruntime."""
    facts: dict[str, Any] = {
        "cpu": "Test CPU",
        "instruction_sets": ("avx2", "avx512_vnni"),
        "usable_cores": 2,
        "total_cores": 4,
        "gpus": (),
        "gpu_reason": "no NVIDIA driver (libcuda.so.1 cannot be loaded)",
        "gpu_targets": (),
        "tensorrt_packages": (),
        "onnxruntime_packages": ("onnxruntime 1.23.0",),
        "onnxruntime_providers": ("CPUExecutionProvider",),
        "native_engine": False,
    }
    return Machine(**facts | overrides)


def fake_reranker(session: FakeSession | None = None, *, manifest: Manifest | None = None, **options: Any) -> Reranker:
    """A reranker whose session needs no model."""
    manifest = manifest or make_manifest()
    tokenizer = PairTokenizer(make_tokenizer(), manifest.pair_template, manifest.truncation)
    return Reranker(session or FakeSession(), tokenizer, manifest, **options)


def write_bundle(
    folder: Path,
    *,
    model: MeanModel | None = None,
    family: str = "bert",
    precisions: tuple[Precision, ...] = (Precision.FP32,),
    variant_overrides: Mapping[Precision, dict[str, Any]] | None = None,
    external_data: bool = False,
    **overrides: Any,
) -> Path:
    """Write a bundle that is right in every part, save for what is overridden.

    Every variant is the same float32 graph; the golden logits come from numpy.
    """
    model = model or MeanModel(uses_type_ids=family == "bert")
    tokenizer = make_tokenizer(family)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / TOKENIZER_NAME))
    variants = {}
    for precision in precisions:
        files = model.save(folder / "onnx" / precision.file_name, external_data=external_data)
        names = tuple(file.relative_to(folder).as_posix() for file in files)
        variants[precision] = make_variant(
            precision, **{"path": names[0], "files": names} | (variant_overrides or {}).get(precision, {})
        )
    logits = model.logits([tokenizer.encode(*texts) for texts in GOLDEN_TEXTS])
    inputs = ("input_ids", "attention_mask", *(("token_type_ids",) if model.uses_type_ids else ()))
    parts: dict[str, Any] = {
        "pair_template": TEMPLATES[family],
        "pad_token_id": PAD_TOKEN_IDS[family],
        "input_names": inputs,
        "scoring": make_scoring(model.labels),
        "variants": variants,
        "golden": tuple(
            GoldenPair(query=query, passage=passage, logits=tuple(row.tolist()))
            for (query, passage), row in zip(GOLDEN_TEXTS, logits, strict=True)
        ),
        "files": {
            path.relative_to(folder).as_posix(): record_file(path) for path in sorted(folder.rglob("*")) if path.is_file()
        },
    }
    write_manifest(folder, make_manifest(**parts | overrides))
    return folder


def write_manifest(folder: Path, manifest: Manifest) -> None:
    (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    return Manifest.from_json((folder / MANIFEST_NAME).read_text(encoding="utf-8"))


def record_again(folder: Path, name: str) -> None:
    """Make the manifest agree with a file that was altered."""
    manifest = read_manifest(folder)
    write_manifest(folder, replace(manifest, files={**manifest.files, name: record_file(folder / name)}))


def make_engine_spec(**overrides: Any) -> EngineSpec:
    """A float16 engine for one target."""
    fields: dict[str, Any] = {
        "precision": Precision.FP16,
        "model": {"onnx/model_fp16.onnx": "4" * 64},
        "profiles": (make_profile((1, 64)), make_profile((65, 128))),
        "backend": EngineBackend.TENSORRT_RTX,
        "compiler_version": "1.7.1.116",
        "targets": ("sm86",),
        "gpu": None,
        "platform": "linux-x86_64",
        "builder_level": None,
        "workspace_mb": None,
        "version_compatible": False,
        "hardware_compatible": False,
    }
    return EngineSpec(**fields | overrides)


def make_engine_record(spec: EngineSpec | None = None, **overrides: Any) -> EngineRecord:
    spec = spec or make_engine_spec()
    fields: dict[str, Any] = {
        "key": spec.key,
        "spec": spec,
        "inputs": (EngineTensor(name="input_ids", dtype="int64", shape=(-1, -1)),),
        "outputs": (EngineTensor(name="logits", dtype="float32", shape=(-1, 1)),),
        "engine": FileRecord(sha256="5" * 64, size_bytes=1),
        "build_seconds": 1.5,
        "crossforge_version": "0.1.0",
    }
    return EngineRecord(**fields | overrides)


def make_profile(sequence: tuple[int, int], batch: int = 8) -> OptimizationProfile:
    return OptimizationProfile(
        batch_size=ShapeRange(min=1, opt=batch, max=batch),
        sequence_length=ShapeRange(min=sequence[0], opt=sequence[1], max=sequence[1]),
    )
