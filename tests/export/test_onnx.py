"""PyTorch to ONNX, and models whose weights lie beside them."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto
from transformers import AutoModelForTokenClassification, FNetConfig, FNetForSequenceClassification

from crossforge.export.bundle import record_files
from crossforge.export.exporter import ExportOptions, export_bundle
from crossforge.export.onnx import OPSET, export_onnx, opset_of, save_onnx
from crossforge.export.pairs import calibration_pairs, flatten
from crossforge.export.source import LoadedSource
from crossforge.profiles import IntegrityError, Manifest, Precision, SourceError
from crossforge.runtime import Reranker
from support.tiny_models import UNGATED

PAIRS = flatten(calibration_pairs())[:12]


# The graph


def test_the_graph_takes_any_batch_and_sequence(tiny_graph: ModelProto) -> None:
    axes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in tiny_graph.graph.input
    }
    assert list(axes) == ["input_ids", "attention_mask", "token_type_ids"]
    assert all(all(isinstance(axis, str) for axis in shape) for shape in axes.values())


def test_the_graph_answers_one_logit_a_label(tiny_graph: ModelProto) -> None:
    (logits,) = tiny_graph.graph.output
    assert logits.name == "logits"
    assert logits.type.tensor_type.shape.dim[1].dim_value == 1


def test_the_graph_uses_standard_operators_of_one_opset(tiny_graph: ModelProto) -> None:
    assert {node.domain for node in tiny_graph.graph.node} == {""}
    assert opset_of(tiny_graph) == OPSET
    onnx.checker.check_model(tiny_graph, full_check=True)


def test_the_opset_of_a_graph_without_standard_operators_is_zero() -> None:
    assert opset_of(ModelProto()) == 0


def test_tracing_leaves_the_model_and_the_loggers_as_they_were(tiny_source: LoadedSource) -> None:
    inputs = dict(tiny_source.tokenizer("a query", "a passage", return_tensors="pt"))
    logging.getLogger("torch.onnx").setLevel(logging.INFO)
    with torch.inference_mode():
        before = tiny_source.model(**inputs).logits
        export_onnx(tiny_source.model)
        after = tiny_source.model(**inputs).logits
    assert torch.equal(before, after)
    assert not tiny_source.model.training
    assert logging.getLogger("torch.onnx").level == logging.INFO


def test_tracing_keeps_the_terminal_quiet(tiny_source: LoadedSource, capfd: pytest.CaptureFixture[str]) -> None:
    export_onnx(tiny_source.model)
    assert capfd.readouterr() == ("", "")


def test_a_model_that_labels_tokens_is_refused(tiny_checkpoint: Path) -> None:
    model = AutoModelForTokenClassification.from_pretrained(tiny_checkpoint).eval()
    with pytest.raises(SourceError, match="not a reranker; got outputs logits"):
        export_onnx(model)


def test_an_architecture_that_optimum_does_not_know_is_refused() -> None:
    config = FNetConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, intermediate_size=8, max_position_embeddings=16)
    with pytest.raises(SourceError, match="optimum cannot export a FNetForSequenceClassification"):
        export_onnx(FNetForSequenceClassification(config).eval())


# Weights beside the graph


def test_a_small_model_is_one_file(tiny_graph: ModelProto, tmp_path: Path) -> None:
    assert save_onnx(tiny_graph, tmp_path / "onnx" / "model.onnx") == [tmp_path / "onnx" / "model.onnx"]
    assert [path.name for path in (tmp_path / "onnx").iterdir()] == ["model.onnx"]


def test_the_weights_of_a_large_model_lie_in_a_second_file(tiny_graph: ModelProto, tmp_path: Path) -> None:
    before = tiny_graph.SerializeToString()
    path, data = save_onnx(tiny_graph, tmp_path / "model.onnx", external_data_threshold_bytes=100_000)
    assert data.name == "model.onnx_data"
    assert data.stat().st_size > 100_000 > path.stat().st_size
    assert tiny_graph.SerializeToString() == before
    loaded = onnx.load(path)
    assert {t.name: t.raw_data for t in loaded.graph.initializer} == {
        t.name: t.raw_data for t in tiny_graph.graph.initializer
    }


def test_saving_twice_leaves_what_saving_once_does(tiny_graph: ModelProto, tmp_path: Path) -> None:
    save_onnx(tiny_graph, tmp_path / "model.onnx", external_data_threshold_bytes=0)
    once = record_files(tmp_path)
    save_onnx(tiny_graph, tmp_path / "model.onnx", external_data_threshold_bytes=0)
    assert record_files(tmp_path) == once
    save_onnx(tiny_graph, tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.fixture(scope="module")
def split_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """The tiny bundle, with the weights of its variants in files of their own."""
    path = tmp_path_factory.mktemp("split") / "bundle"
    options = ExportOptions(gates=UNGATED.gates, external_data_threshold_bytes=1000)
    return path, export_bundle(str(tiny_checkpoint), path, options)


def test_the_manifest_records_the_second_file(split_bundle: tuple[Path, Manifest]) -> None:
    path, manifest = split_bundle
    assert manifest.variants[Precision.FP32].files == ("onnx/model.onnx", "onnx/model.onnx_data")
    assert manifest.variants[Precision.INT8].files == ("onnx/model_int8.onnx", "onnx/model_int8.onnx_data")
    for variant in manifest.variants.values():
        for name in variant.files:
            assert manifest.files[name].size_bytes == (path / name).stat().st_size


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_split_bundle_scores_like_a_whole_one(
    split_bundle: tuple[Path, Manifest], tiny_bundle: Path, precision: str
) -> None:
    with (
        Reranker.load(split_bundle[0], provider="cpu", precision=precision) as split,
        Reranker.load(tiny_bundle, provider="cpu", precision=precision) as whole,
    ):
        np.testing.assert_array_equal(split.score_pairs(PAIRS).logits, whole.score_pairs(PAIRS).logits)


@pytest.mark.parametrize("damage", ["altered", "shortened", "missing"])
def test_damage_to_the_second_file_is_found_on_loading(
    split_bundle: tuple[Path, Manifest], tmp_path: Path, damage: str
) -> None:
    bundle = Path(shutil.copytree(split_bundle[0], tmp_path / "bundle"))
    data = bundle / "onnx" / "model.onnx_data"
    content = data.read_bytes()
    if damage == "altered":
        data.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "shortened":
        data.write_bytes(content[:-4])
    else:
        data.unlink()
    with pytest.raises(IntegrityError, match=r"onnx/model\.onnx_data"):
        Reranker.load(bundle, provider="cpu", precision="fp32")
