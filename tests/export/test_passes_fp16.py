"""The float16 pass on every architecture: what computes in which precision, and how close the logits stay."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from crossforge.export.calibration import calibration_batches
from crossforge.export.onnx import export_onnx
from crossforge.export.pairs import flatten, verification_pairs
from crossforge.export.parity import kendall_tau
from crossforge.export.passes.fp16 import LARGEST, convert_fp16
from crossforge.export.passes.fp16_overflow import find_overflows
from crossforge.export.passes.products import find_encoder_products
from crossforge.export.source import load_source
from crossforge.runtime.bundle import TOKENIZER_NAME, Bundle
from crossforge.runtime.tokenization import PairTokenizer
from support.fp16 import (
    FLOAT,
    HALF,
    MOST_DIFFERENCE,
    casts,
    error,
    floats_of,
    kinds,
    node_kinds,
    nodes,
    random_batch,
    run,
    run_strongly_typed,
    weight_bytes,
)
from support.tiny_models import MAX_LENGTH, save_tiny_model

ARCHITECTURES = ("bert", "roberta", "electra", "deberta-v2", "modernbert")


@pytest.fixture(scope="module", params=ARCHITECTURES)
def graph(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelProto:
    """A tiny reranker in float32; tests must not change it."""
    folder = save_tiny_model(tmp_path_factory.mktemp("fp16") / "checkpoint", request.param)
    return export_onnx(load_source(str(folder)).model)


@pytest.fixture(scope="module")
def half(graph: ModelProto) -> ModelProto:
    return convert_fp16(graph).model


# Every architecture


def test_inputs_and_outputs_stay_the_same(graph: ModelProto, half: ModelProto) -> None:
    assert list(half.graph.input) == list(graph.graph.input)
    assert list(half.graph.output) == list(graph.graph.output)
    assert kinds(half)["logits"] == FLOAT


def test_the_input_model_is_left_as_it_was(graph: ModelProto) -> None:
    before = graph.SerializeToString()
    convert_fp16(graph)
    find_overflows(graph, [random_batch(graph, 2, 5)])
    assert graph.SerializeToString() == before


def test_operators_are_standard_and_allow_their_types(graph: ModelProto, half: ModelProto) -> None:
    onnx.checker.check_model(half, full_check=True)
    assert half.opset_import == graph.opset_import
    assert len({node.name for node in half.graph.node}) == len(half.graph.node)


def test_weights_take_half_the_bytes(graph: ModelProto, half: ModelProto) -> None:
    assert weight_bytes(half) < 0.56 * weight_bytes(graph)


def test_all_products_of_the_encoder_are_in_float16(graph: ModelProto, half: ModelProto) -> None:
    types = kinds(half)
    products = [product.node.output[0] for product in find_encoder_products(graph)]
    assert products
    assert {types[name] for name in products} == {HALF}


def test_word_embeddings_are_looked_up_in_float16(half: ModelProto) -> None:
    types = kinds(half)
    assert [types[node.output[0]] for node in nodes(half, "Gather") if node.input[1] == "input_ids"] == [HALF]


def test_normalizations_softmax_and_the_head_are_in_float32(half: ModelProto) -> None:
    assert node_kinds(half, "LayerNormalization", "Softmax") == {FLOAT}
    assert node_kinds(half, "Gemm", "ReduceSum") == {FLOAT}


@pytest.mark.parametrize(("rows", "tokens"), [(1, 2), (7, 19), (4, MAX_LENGTH)])
def test_logits_stay_close_at_shapes_that_were_never_traced(
    graph: ModelProto, half: ModelProto, rows: int, tokens: int
) -> None:
    batches = [random_batch(graph, 16, 20), random_batch(graph, rows, tokens)]
    assert error(run(half, *batches), run(graph, *batches)) <= MOST_DIFFERENCE


def test_logits_stay_close_where_every_type_is_obeyed(
    request: pytest.FixtureRequest, graph: ModelProto, half: ModelProto
) -> None:
    if "deberta" in request.node.name:
        pytest.skip("onnx's evaluator cannot run DeBERTa's GatherElements")
    batch = random_batch(graph, 8, 11)
    assert error(run_strongly_typed(half, batch), run_strongly_typed(graph, batch)) <= MOST_DIFFERENCE


def test_padding_changes_no_logit(graph: ModelProto, half: ModelProto) -> None:
    batch = random_batch(graph, 4, 12, padded=False)
    padded = {name: np.pad(values, ((0, 0), (0, 40))) for name, values in batch.items()}
    assert error(run(half, padded), run(graph, batch)) <= MOST_DIFFERENCE


def test_a_row_without_any_token_is_finite_where_it_was(graph: ModelProto, half: ModelProto) -> None:
    batch = random_batch(graph, 3, 6)
    batch["attention_mask"][1] = 0
    assert (np.isfinite(run(half, batch)) == np.isfinite(run(graph, batch))).all()


def test_no_constant_is_too_large_for_float16(graph: ModelProto, half: ModelProto) -> None:
    assert min(values.min(initial=0) for values in floats_of(graph)) < -LARGEST
    assert min(values.min(initial=0) for values in floats_of(half)) == -LARGEST
    assert all(np.isfinite(values).all() for values in floats_of(half))


def test_a_tensor_is_cast_once_and_never_back(half: ModelProto) -> None:
    between = casts(half)
    assert max(Counter(node.input[0] for node in between).values()) == 1
    assert {node.input[0] for node in between}.isdisjoint(node.output[0] for node in between)


def test_a_second_run_changes_nothing(half: ModelProto) -> None:
    again = convert_fp16(half)
    assert not again.changed
    assert again.notes == ("the model computes in float16 already",)
    assert again.model == half
    assert again.model is not half


def test_a_healthy_model_overflows_nowhere(graph: ModelProto) -> None:
    assert find_overflows(graph, [random_batch(graph, 6, 20), random_batch(graph, 1, MAX_LENGTH)]) == ()


# A trained model


@pytest.mark.slow
def test_the_demo_model_ranks_the_same(demo_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(demo_bundle)
    manifest = bundle.manifest
    tokenizer = PairTokenizer.from_file(demo_bundle / TOKENIZER_NAME, manifest.pair_template, manifest.truncation)
    records = verification_pairs()[:3]
    model = onnx.load(demo_bundle / "onnx" / "model.onnx")
    half = convert_fp16(model).model
    onnx.save(half, tmp_path / "half.onnx")
    size_bytes = (demo_bundle / "onnx" / "model.onnx").stat().st_size
    assert (tmp_path / "half.onnx").stat().st_size < 0.52 * size_bytes
    batches = calibration_batches(records, tokenizer, pad_token_id=manifest.pad_token_id, input_names=manifest.input_names)
    assert find_overflows(model, batches[:2]) == ()
    expected, answer = run(model, *batches)[:, 0], run(half, *batches)[:, 0]
    assert len(answer) == len(flatten(records)) == 60
    tau = kendall_tau(answer, expected)
    assert tau is not None
    assert tau >= 0.995
