"""The whole way from a checkpoint to a bundle: what is written, and when nothing is."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from crossforge.export.exporter import ExportOptions, export_bundle
from crossforge.export.gates import GATES, OPEN_GATE, Gate
from crossforge.export.pairs import digest_pairs, flatten, verification_pairs
from crossforge.export.source import SourceOptions
from crossforge.profiles import MANIFEST_NAME, Activation, GateError, InputError, Manifest, Precision, SourceError
from crossforge.runtime import Reranker
from crossforge.runtime.bundle import Bundle
from crossforge.runtime.progress import Stage
from support.tiny_models import MAX_LENGTH, UNGATED, edit_json, save_tiny_model

FP32_ONLY = ExportOptions(precisions=(Precision.FP32,))


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> Manifest:
    return Bundle.open(tiny_bundle).manifest


# What is written


def test_a_bundle_holds_its_variants_and_what_the_hub_keeps_with_a_model(tiny_bundle: Path) -> None:
    files = {path.relative_to(tiny_bundle).as_posix() for path in tiny_bundle.rglob("*") if path.is_file()}
    tokenizer = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"}
    reports = {"reports/parity.json", "reports/parity.md"}
    assert files == {MANIFEST_NAME, "config.json", *tokenizer, *reports, "onnx/model.onnx", "onnx/model_int8.onnx"}


def test_every_file_is_recorded_as_it_is(tiny_bundle: Path, manifest: Manifest) -> None:
    bundle = Bundle.open(tiny_bundle)
    files = {path.relative_to(tiny_bundle).as_posix() for path in tiny_bundle.rglob("*") if path.is_file()}
    assert manifest.files.keys() == files - {MANIFEST_NAME}
    bundle.check(manifest.files)


def test_what_is_returned_is_what_was_written(tiny_checkpoint: Path, tmp_path: Path) -> None:
    returned = export_bundle(str(tiny_checkpoint), tmp_path / "bundle", FP32_ONLY)
    assert returned == Bundle.open(tmp_path / "bundle").manifest


def test_the_manifest_says_what_the_model_is(manifest: Manifest) -> None:
    assert manifest.source.id == "checkpoint"
    assert (manifest.architecture, manifest.model_type) == ("BertForSequenceClassification", "bert")
    assert manifest.truncation.max_length == MAX_LENGTH
    assert manifest.scoring.activation is Activation.SIGMOID
    assert manifest.pair_template.special_token_count == 3
    assert manifest.tools["onnx"] == importlib.metadata.version("onnx")


def test_the_manifest_says_what_the_variants_were_compared_on(manifest: Manifest) -> None:
    for precision, reference in ((Precision.FP32, "pytorch"), (Precision.INT8, "fp32")):
        parity = manifest.variants[precision].parity
        assert parity.reference == reference
        assert parity.pairs_sha256 == digest_pairs(verification_pairs())
        assert (parity.queries, parity.pairs) == (12, 240)
    assert manifest.variants[Precision.FP32].parity.max_abs_diff < 1e-4
    assert manifest.variants[Precision.INT8].parity.max_abs_diff > 1e-4


def test_the_golden_pairs_are_of_the_verification_pairs(manifest: Manifest) -> None:
    assert len(manifest.golden) == 8
    assert {(pair.query, pair.passage) for pair in manifest.golden} <= set(flatten(verification_pairs()))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_every_variant_reproduces_the_golden_scores(tiny_bundle: Path, precision: str) -> None:
    with Reranker.load(tiny_bundle, provider="cpu", precision=precision, check_golden=True) as reranker:
        assert reranker.check_golden() > 0


def test_the_tokenizer_is_saved_without_the_limits_of_the_source(checkpoint: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=16)
    tokenizer.save(str(checkpoint / "tokenizer.json"))
    export_bundle(str(checkpoint), tmp_path / "bundle", FP32_ONLY)
    saved = json.loads((tmp_path / "bundle" / "tokenizer.json").read_text())
    assert (saved["truncation"], saved["padding"]) == (None, None)


def test_the_tokenizers_limit_is_the_contracts(tiny_checkpoint: Path, tmp_path: Path) -> None:
    options = ExportOptions(precisions=(Precision.FP32,), source=SourceOptions(max_length=32, query_max_length=9))
    manifest = export_bundle(str(tiny_checkpoint), tmp_path / "bundle", options)
    assert (manifest.truncation.max_length, manifest.truncation.query_max_length) == (32, 9)
    assert json.loads((tmp_path / "bundle" / "tokenizer_config.json").read_text())["model_max_length"] == 32


def test_the_config_names_the_activation_where_sentence_transformers_looks(tiny_checkpoint: Path, tmp_path: Path) -> None:
    options = ExportOptions(precisions=(Precision.FP32,), source=SourceOptions(activation=Activation.IDENTITY))
    manifest = export_bundle(str(tiny_checkpoint), tmp_path / "bundle", options)
    assert manifest.scoring.activation is Activation.IDENTITY
    config = json.loads((tmp_path / "bundle" / "config.json").read_text())
    assert config["sentence_transformers"]["activation_fn"] == "torch.nn.modules.linear.Identity"


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_fp32_passes_its_gate_where_queries_are_cut_on_the_left(tmp_path: Path, architecture: str) -> None:
    save_tiny_model(tmp_path / "checkpoint", architecture)
    edit_json(tmp_path / "checkpoint" / "tokenizer_config.json", truncation_side="left")
    options = ExportOptions(precisions=(Precision.FP32,), source=SourceOptions(query_max_length=5))
    assert export_bundle(str(tmp_path / "checkpoint"), tmp_path / "bundle", options).variants[Precision.FP32].parity.passed


# Choosing variants


def test_fp32_alone(tiny_checkpoint: Path, tmp_path: Path) -> None:
    manifest = export_bundle(str(tiny_checkpoint), tmp_path / "bundle", FP32_ONLY)
    assert manifest.variants.keys() == {Precision.FP32}
    assert [path.name for path in (tmp_path / "bundle" / "onnx").iterdir()] == ["model.onnx"]


def test_int8_alone(tiny_checkpoint: Path, tmp_path: Path) -> None:
    options = ExportOptions(precisions=(Precision.INT8,), gates=UNGATED.gates, external_data_threshold_bytes=0)
    manifest = export_bundle(str(tiny_checkpoint), tmp_path / "bundle", options)
    assert manifest.variants.keys() == {Precision.INT8}
    files = sorted(path.name for path in (tmp_path / "bundle" / "onnx").iterdir())
    assert files == ["model_int8.onnx", "model_int8.onnx_data"]
    with Reranker.load(tmp_path / "bundle", provider="cpu", precision="int8", check_golden=True) as reranker:
        assert np.isfinite(reranker.score("query", ["passage"])).all()


def test_no_precision_is_refused() -> None:
    with pytest.raises(InputError, match="no precision"):
        ExportOptions(precisions=())


def test_fp16_is_made_on_request_and_ranks_the_same(tiny_checkpoint: Path, tmp_path: Path) -> None:
    options = replace(UNGATED, precisions=(Precision.FP32, Precision.FP16))
    manifest = export_bundle(str(tiny_checkpoint), tmp_path / "bundle", options)
    variant = manifest.variants[Precision.FP16]
    sizes = {name: record.size_bytes for name, record in manifest.files.items()}
    assert set(manifest.variants) == {Precision.FP32, Precision.FP16}
    assert variant.parity.kendall_tau is not None
    assert variant.parity.kendall_tau > 0.99
    assert sizes[variant.path] < 0.8 * sizes[manifest.variants[Precision.FP32].path]
    with Reranker.load(tmp_path / "bundle", precision="fp16", check_golden=True) as reranker:
        assert reranker.precision is Precision.FP16


# When nothing is written


@pytest.mark.parametrize(
    ("precision", "gate"),
    [
        (Precision.FP32, Gate(max_abs_diff=0.0)),
        (Precision.FP32, Gate(min_kendall_tau=1.1)),
        (Precision.INT8, Gate(min_kendall_tau=1.1)),
    ],
)
def test_a_variant_that_fails_its_gate_is_not_written(
    tiny_checkpoint: Path, tmp_path: Path, precision: Precision, gate: Gate
) -> None:
    options = ExportOptions(gates={**UNGATED.gates, precision: gate})
    with pytest.raises(GateError, match=f"the {precision} variant does not rank like.*allowed: {gate.describe()}"):
        export_bundle(str(tiny_checkpoint), tmp_path / "bundle", options)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_gate_leaves_the_old_bundle(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    with pytest.raises(GateError):
        export_bundle(
            str(tiny_checkpoint), old, ExportOptions(gates={**UNGATED.gates, Precision.INT8: Gate(max_abs_diff=0.0)})
        )
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    bundle = Bundle.open(old)
    bundle.check(bundle.manifest.files)


def test_a_gate_that_is_not_enforced_marks_the_variant_and_auto_avoids_it(tiny_checkpoint: Path, tmp_path: Path) -> None:
    gates = {**UNGATED.gates, Precision.INT8: Gate(min_kendall_tau=1.1)}
    manifest = export_bundle(str(tiny_checkpoint), tmp_path / "bundle", ExportOptions(gates=gates, enforce_gates=False))
    assert manifest.variants[Precision.FP32].parity.passed
    assert not manifest.variants[Precision.INT8].parity.passed
    with Reranker.load(tmp_path / "bundle", provider="cpu") as reranker:
        assert reranker.precision is Precision.FP32


def test_a_checkpoint_that_answers_nan_passes_no_gate(checkpoint: Path, tmp_path: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    weights["classifier.bias"].fill_(float("nan"))
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(GateError, match="difference nan"):
        export_bundle(str(checkpoint), tmp_path / "bundle", ExportOptions(gates=dict.fromkeys(Precision, OPEN_GATE)))
    assert not (tmp_path / "bundle").exists()


def test_other_content_at_the_target_is_refused_before_the_source_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="exists and is not a bundle"):
        export_bundle(str(tmp_path / "no-such-checkpoint"), tmp_path / "bundle")


def test_a_source_that_cannot_be_loaded_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    with pytest.raises(SourceError):
        export_bundle(str(tmp_path / "checkpoint"), tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


# Progress


class Listener:
    """Writes down the stages of an export."""

    def __init__(self) -> None:
        self.notes: dict[str, str] = {}
        self.advances: dict[str, list[tuple[int, int]]] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        advances = self.advances[name] = []

        class Listening(Stage):
            def advance(self, done: int, total: int) -> None:
                advances.append((done, total))

        stage = Listening()
        yield stage
        self.notes[name] = stage.note


def test_progress_is_told_of_every_stage(tiny_checkpoint: Path, tmp_path: Path) -> None:
    listener = Listener()
    export_bundle(str(tiny_checkpoint), tmp_path / "bundle", UNGATED, progress=listener)
    assert list(listener.notes) == [
        "load the checkpoint",
        "score with PyTorch",
        "convert to ONNX",
        "verify fp32",
        "quantize to int8",
        "verify int8",
    ]
    assert all(listener.notes.values())
    for name in ("verify fp32", "verify int8"):
        done = [count for count, _ in listener.advances[name]]
        assert done == sorted(set(done))
        assert listener.advances[name][-1] == (240, 240)


def test_the_demo_passes_every_gate(demo_bundle: Path) -> None:
    variants = Bundle.open(demo_bundle).manifest.variants
    assert variants.keys() == {Precision.FP32, Precision.INT8}
    for precision, variant in variants.items():
        assert variant.parity.passed
        assert GATES[precision].passes(variant.parity)
