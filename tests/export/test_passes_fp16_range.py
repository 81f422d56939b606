"""What float16 cannot hold: masks that are the lowest float32, and sums that overflow."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from onnx import ModelProto

from crossforge.export.onnx import export_onnx
from crossforge.export.parity import kendall_tau
from crossforge.export.passes.fp16 import LARGEST, PrecisionPlan, convert_fp16, prepare
from crossforge.export.passes.fp16_overflow import find_overflows
from crossforge.export.source import load_source
from crossforge.profiles import InputError
from support.fp16 import (
    FLOAT,
    HALF,
    IDS,
    LOOKUP,
    MOST_DIFFERENCE,
    TABLE,
    WEIGHT,
    Array,
    error,
    floats_of,
    kinds,
    parse,
    random_batch,
    run,
    run_strongly_typed,
)
from support.tiny_models import save_tiny_model

# Masks

BY_CONSTANT = "m = Where(hidden, lowest, nothing)"
BY_PRODUCT = "f = Cast<to = 1>(hidden)  m = Mul(f, lowest)"
BY_CAST = "l = Cast<to = 1>(lowest)  m = Where(hidden, l, nothing)"
LOWEST = float(np.finfo(np.float32).min)


@pytest.mark.parametrize(
    ("mask", "lowest"),
    [
        (BY_CONSTANT, np.asarray(LOWEST, np.float32)),
        (BY_CONSTANT, np.asarray([-1e9], np.float32)),
        (BY_CONSTANT, np.asarray([-np.inf], np.float32)),
        (BY_PRODUCT, np.asarray(LOWEST, np.float32)),
        (BY_CAST, np.asarray(np.finfo(np.float64).min)),
        ("one = Shape(nothing)  l = ConstantOfShape<value = float[1] {-3.4e38}>(one)  m = Where(hidden, l, nothing)", None),
        ("l = Constant<value = float {-3.4e38}>()  m = Where(hidden, l, nothing)", None),
        ("big = Constant<value = float {3.4e38}>()  f = Cast<to = 1>(hidden)  n = Mul(f, big)  m = Neg(n)", None),
    ],
    ids=["scalar", "-1e9", "infinite", "product", "double", "ConstantOfShape", "Constant", "negated"],
)
def test_a_mask_is_finite_whatever_it_is_made_of(mask: str, lowest: Array | None) -> None:
    text = (
        "g (int64[b, s] ids) => (float[b, s, s] y) { x = Gather(table, ids)  small = Less(ids, ten)"
        f" hidden = Unsqueeze(small, row)  {mask}"
        " k = Transpose<perm = [0, 2, 1]>(x)  scores = MatMul(x, k)  masked = Add(scores, m)"
        " t = Relu(masked)  p = Softmax(masked)  y = Sub(p, t) }"
    )
    constants = {"table": TABLE, "ten": np.asarray(10), "row": np.asarray([1]), "nothing": np.zeros(1, np.float32)}
    if lowest is not None:
        constants["lowest"] = lowest
    model = parse(text, **constants)
    result = convert_fp16(model)
    assert not any(np.isinf(values).any() for values in floats_of(result.model))
    whole_row_masked = {"ids": np.asarray([[1, 2, 3], [20, 1, 30], [20, 40, 30]])}
    expected, answer = run(model, whole_row_masked), run_strongly_typed(result.model, whole_row_masked)
    assert np.isfinite(answer).all()
    assert answer[1:] == pytest.approx(expected[1:], abs=0.05)
    assert (answer[1, :, 1] == 0).all()


def test_two_masks_added_are_not_infinite() -> None:
    model = parse(
        LOOKUP
        + "h = MatMul(x, w)  a = Add(h, mask)  b = Add(a, mask)  p = Softmax(b)  out = MatMul(p, w)  y = Identity(out) }",
        table=TABLE,
        w=WEIGHT,
        mask=np.full((1, 1, 16), LOWEST, np.float32),
    )
    assert np.isnan(run_strongly_typed(model, {"ids": IDS})).all()
    assert np.isfinite(run_strongly_typed(convert_fp16(model).model, {"ids": IDS})).all()


def test_a_matrix_of_masks_is_raised_and_not_taken_for_a_weight() -> None:
    window = np.where(np.abs(np.subtract.outer(np.arange(7), np.arange(7))) <= 2, 0, -np.inf).astype(np.float32)
    model = parse(
        LOOKUP + "k = Transpose<perm = [0, 2, 1]>(x)  scores = MatMul(x, k)  a = Add(scores, window)  p = Softmax(a)"
        " out = MatMul(p, x)  y = Identity(out) }",
        table=TABLE,
        window=window,
    )
    result = convert_fp16(model)
    assert "1 masking constants raised to -65504" in result.notes
    types = kinds(result.model)
    assert (types["scores"], types["window"], types["a"], types["out"]) == (HALF, FLOAT, FLOAT, HALF)
    assert error(run(result.model, {"ids": IDS}), run(model, {"ids": IDS})) <= MOST_DIFFERENCE


# What overflows


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> ModelProto:
    """A model whose first feed-forward layer works on values of a few hundred thousand, and gives what it gave."""
    folder = save_tiny_model(tmp_path_factory.mktemp("fp16") / "checkpoint", hidden_act="relu")
    model: Any = copy.deepcopy(load_source(str(folder)).model)
    layer = model.bert.encoder.layer[0]
    with torch.no_grad():
        factor = 0.9 * LARGEST / layer.intermediate.dense.weight.abs().max()
        layer.intermediate.dense.weight *= factor
        layer.intermediate.dense.bias *= factor
        layer.output.dense.weight /= factor
    return export_onnx(model)


def test_plain_conversion_of_an_overflowing_model_gives_no_ranking(overflowing: ModelProto) -> None:
    batch = random_batch(overflowing, 12, 15)
    assert np.isfinite(run_strongly_typed(overflowing, batch)).all()
    assert not np.isfinite(run_strongly_typed(convert_fp16(overflowing).model, batch)).any()


def test_overflowing_nodes_kept_in_float32_restore_the_ranking(overflowing: ModelProto) -> None:
    names = find_overflows(overflowing, [random_batch(overflowing, 8, 12)])
    assert 1 <= len(names) <= 4
    assert all("layer.0/" in name for name in names)
    model = convert_fp16(overflowing, keep_fp32_nodes=names).model
    batch = random_batch(overflowing, 12, 15)  # other pairs
    expected = run(overflowing, batch)
    for answer in (run(model, batch), run_strongly_typed(model, batch)):
        assert error(answer, expected) <= MOST_DIFFERENCE
        assert kendall_tau(answer[:, 0], expected[:, 0]) == pytest.approx(1)


def test_names_come_in_the_graphs_order(overflowing: ModelProto) -> None:
    every = [node.name for node in prepare(overflowing)[0].graph.node]
    names = find_overflows(overflowing, [random_batch(overflowing, 2, 6)])
    assert list(names) == sorted(names, key=every.index)


def test_any_batch_may_overflow() -> None:
    table = TABLE.copy()
    table[7] = 5e4
    model = parse(LOOKUP + "h = MatMul(x, w)  out = MatMul(h, w)  y = Identity(out) }", table=table, w=WEIGHT / 100)
    healthy, ill = {"ids": np.asarray([[1, 2]])}, {"ids": np.asarray([[3, 7]])}
    assert find_overflows(model, [healthy]) == ()
    assert find_overflows(model, [ill, healthy]) == find_overflows(model, [healthy, ill]) == ("Gather_x", "MatMul_h")
    assert find_overflows(model, [ill], limit=5e4) == ()


def test_only_nodes_that_would_be_float16_are_named(tiny_graph: ModelProto) -> None:
    names = find_overflows(tiny_graph, [random_batch(tiny_graph, 2, 5)], limit=0)
    plan = PrecisionPlan(prepare(tiny_graph)[0])
    assert set(names) == plan.half
    assert not any("LayerNorm" in name or "Softmax" in name for name in names)


def test_nothing_to_measure_on_is_an_error(tiny_graph: ModelProto) -> None:
    with pytest.raises(InputError, match="no batches"):
        find_overflows(tiny_graph, [])
