"""Ranges of activations: padding does not move them, and each method clips what it says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from crossforge.export import ranges
from crossforge.export.histograms import BINS, Histogram, find_entropy_threshold, find_percentile_range
from crossforge.export.options import RangeMethod
from crossforge.export.passes import keep_first_row
from crossforge.export.passes.products import find_encoder_products
from crossforge.export.ranges import ActivationRange, collect_ranges
from crossforge.profiles import InputError
from crossforge.runtime.batching import Batch

METHODS = list(RangeMethod)
ROWS = 50
LOUD = ROWS - 1
"""A token whose values are a thousand times as large as those of the others."""
TABLE = np.random.default_rng(0).normal(size=(ROWS, 8)).astype(np.float32)
TABLE[LOUD] *= 1000


def lookup(table: NDArray[np.float32] = TABLE) -> ModelProto:
    """A model whose activation ``x`` [batch, sequence, hidden] holds a row of the table for each token."""
    text = (
        "g (int64[b, s] input_ids, int64[b, s] attention_mask) => (float[b, s, h] y) "
        "{ x = Gather(table, input_ids)  y = Tanh(x)  apart = Tanh(positions)  first = Slice(x, zero, one, one) }"
    )
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 18]> {text}')
    constants = {"table": table, "positions": table[None, :7], "zero": np.asarray([0]), "one": np.asarray([1])}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return model


def batch_of(lengths: Sequence[int], *, width: int, pad: int = 0, seed: int = 0) -> Batch:
    """Rows of tokens below ``LOUD``, padded on the right."""
    mask = (np.arange(width) < np.asarray(lengths)[:, None]).astype(np.int64)
    ids = np.random.default_rng(seed).integers(0, LOUD, size=mask.shape)
    return {"input_ids": np.where(mask, ids, pad), "attention_mask": mask}


def values_of(batches: Sequence[Batch]) -> NDArray[np.float32]:
    """What the tokens of batches look like in ``x``."""
    return np.concatenate([TABLE[batch["input_ids"][batch["attention_mask"].astype(bool)]].ravel() for batch in batches])


VALUES = arrays(
    np.float32,
    array_shapes(min_dims=1, max_dims=1, max_side=200),
    elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=False),
).filter(lambda values: bool(np.abs(values).max() > 1e-6))


def histogram_of(values: NDArray[np.floating[Any]]) -> Histogram:
    return Histogram.empty(float(np.abs(values).max())).with_values(values)


# What counts


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=3))
def test_minmax_covers_the_tokens_exactly(lengths: list[list[int]]) -> None:
    batches = [batch_of(rows, width=9, pad=LOUD, seed=seed) for seed, rows in enumerate(lengths)]
    found = collect_ranges(lookup(), ["x"], batches, RangeMethod.MINMAX)["x"]
    values = values_of(batches)
    assert (found.low, found.high) == (values.min(), values.max())


@pytest.mark.parametrize("method", METHODS)
def test_padding_does_not_move_a_range(method: RangeMethod) -> None:
    tight = [batch_of([9, 9], width=9), batch_of([4], width=4, seed=1)]
    loose = [
        {"input_ids": np.pad(batch["input_ids"], ((0, 0), (0, 6)), constant_values=LOUD), "attention_mask": mask}
        for batch in tight
        for mask in [np.pad(batch["attention_mask"], ((0, 0), (0, 6)))]
    ]
    assert collect_ranges(lookup(), ["x"], loose, method) == collect_ranges(lookup(), ["x"], tight, method)


def test_of_an_activation_cut_to_its_first_row_all_rows_count() -> None:
    batch = batch_of([5, 2, 3], width=5, pad=LOUD)
    first = TABLE[batch["input_ids"][:, 0]]
    found = collect_ranges(lookup(), ["first"], [batch], RangeMethod.MINMAX)["first"]
    assert (found.low, found.high) == (first.min(), first.max())


@pytest.mark.parametrize("method", METHODS)
def test_every_product_of_a_graph_cut_to_the_first_row_gets_a_range(tiny_graph: ModelProto, method: RangeMethod) -> None:
    cut = keep_first_row(tiny_graph).model
    ids = np.random.default_rng(0).integers(5, 300, size=(3, 12))
    mask = (np.arange(12) < np.asarray([[12], [7], [3]])).astype(np.int64)
    batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    names = {product.activation for product in find_encoder_products(cut)}
    found = collect_ranges(cut, names, [batch], method)
    assert found.keys() == names
    assert all(covered.low < covered.high for covered in found.values())


def test_what_is_not_of_the_batchs_tokens_is_left_out() -> None:
    batches = [batch_of([7], width=7), batch_of([3], width=3)]
    assert collect_ranges(lookup(), ["apart", "x"], batches).keys() == {"x"}


@pytest.mark.parametrize("method", METHODS)
def test_an_activation_that_is_always_zero_has_a_range_of_zero(method: RangeMethod) -> None:
    found = collect_ranges(lookup(np.zeros_like(TABLE)), ["x"], [batch_of([4], width=4)], method)
    assert found == {"x": ActivationRange(low=0.0, high=0.0)}


@pytest.mark.parametrize("method", METHODS)
def test_how_many_activations_are_looked_at_together_changes_nothing(
    tiny_graph: ModelProto, method: RangeMethod, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tiny_graph.SerializeToString()
    ids = np.random.default_rng(0).integers(5, 300, size=(2, 9))
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    names = [product.activation for product in find_encoder_products(tiny_graph)]
    together = collect_ranges(tiny_graph, names, [batch], method)
    monkeypatch.setattr(ranges, "_TENSORS_AT_ONCE", 3)
    apart = collect_ranges(tiny_graph, names, [batch], method)
    assert apart.keys() == together.keys() == set(names)
    for name, covered in apart.items():
        assert (covered.low, covered.high) == pytest.approx((together[name].low, together[name].high), rel=1e-5)
    assert tiny_graph.SerializeToString() == before


# What each method clips


@settings(max_examples=25, deadline=None)
@given(st.floats(1, 100), st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_no_method_reaches_beyond_minmax(percentile: float, lengths: list[int]) -> None:
    batches = [batch_of(lengths, width=9)]
    widest = collect_ranges(lookup(), ["x"], batches, RangeMethod.MINMAX)["x"]
    for method in METHODS:
        found = collect_ranges(lookup(), ["x"], batches, method, percentile=percentile)["x"]
        assert widest.low <= found.low <= found.high <= widest.high


@given(VALUES, st.floats(1, 100))
def test_a_percentile_leaves_out_no_more_than_it_says(values: NDArray[np.float32], percentile: float) -> None:
    histogram = histogram_of(values)
    low, high = find_percentile_range(histogram, percentile)
    slack = histogram.step * 1e-6
    allowed = len(values) * (1 - percentile / 100) / 2
    assert (values < low - slack).sum() <= allowed
    assert (values > high + slack).sum() <= allowed


@given(VALUES, st.floats(1, 100), st.floats(1, 100))
def test_a_larger_percentile_is_no_narrower(values: NDArray[np.float32], one: float, other: float) -> None:
    histogram = histogram_of(values)
    narrow, wide = (find_percentile_range(histogram, percentile) for percentile in sorted((one, other)))
    assert wide[0] <= narrow[0]
    assert narrow[1] <= wide[1]


def test_a_percentile_clips_each_side_by_itself() -> None:
    values = np.concatenate([np.linspace(-0.17, 0, 1000), np.linspace(0, 5, 9000), [900.0]])
    low, high = find_percentile_range(histogram_of(values), 99.9)
    assert low == pytest.approx(-0.17, abs=900 / BINS)
    assert high == pytest.approx(5, abs=900 / BINS)


def test_entropy_clips_an_outlier_and_keeps_a_plateau() -> None:
    rng = np.random.default_rng(0)
    bulk = rng.normal(size=100_000)
    assert 3 < find_entropy_threshold(histogram_of(np.append(bulk, 40.0))) < 6
    assert find_entropy_threshold(histogram_of(rng.uniform(-1, 1, size=100_000))) > 0.99


def test_a_spike_at_zero_does_not_decide_where_entropy_clips() -> None:
    bulk = np.random.default_rng(0).normal(size=100_000)
    spiked = np.append(bulk, np.full(400_000, 1e-6))
    assert find_entropy_threshold(histogram_of(spiked)) == pytest.approx(find_entropy_threshold(histogram_of(bulk)))


def test_entropy_collected_from_a_model_clips_a_token_of_outliers() -> None:
    table = TABLE.copy()
    table[LOUD] = 0.001
    table[LOUD, 0] = 40.0
    batch = batch_of([200] * 40, width=200)
    batch["input_ids"][0, 0] = LOUD
    widest = collect_ranges(lookup(table), ["x"], [batch], RangeMethod.MINMAX)["x"]
    clipped = collect_ranges(lookup(table), ["x"], [batch], RangeMethod.ENTROPY)["x"]
    assert widest.high == 40.0
    assert clipped.high < 8
    assert clipped.low >= -clipped.high


@pytest.mark.parametrize("seed", [0, 1])
def test_entropy_follows_the_published_pseudocode(seed: int) -> None:
    rng = np.random.default_rng(seed)
    histogram = histogram_of(rng.standard_t(df=3 + 20 * seed, size=3000))
    assert find_entropy_threshold(histogram) == threshold_by_the_book(histogram.magnitudes.tolist(), histogram.step)


def threshold_by_the_book(bins: list[int], step: float) -> float:
    """Entropy calibration, word by word."""
    bins = [bins[1], *bins[1:]]
    best, best_divergence = 0, np.inf
    for i in range(128, len(bins) + 1):
        reference = np.array(bins[:i], dtype=float)
        candidate = np.zeros(i)
        for level in range(128):
            start, stop = level * i // 128, (level + 1) * i // 128
            filled = sum(count > 0 for count in bins[start:stop])
            for bin_ in range(start, stop):
                if bins[bin_]:
                    candidate[bin_] = sum(bins[start:stop]) / filled
        reference[-1] += sum(bins[i:])
        if np.any((candidate == 0) & (reference > 0)):
            continue
        p, q = reference / reference.sum(), candidate / candidate.sum()
        divergence = (p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum()
        if divergence <= best_divergence:
            best, best_divergence = i, divergence
    return best * step


@given(VALUES, st.integers(0, 200))
def test_a_histogram_may_be_counted_in_parts(values: NDArray[np.float32], cut: int) -> None:
    whole = histogram_of(values)
    parts = Histogram.empty(whole.largest).with_values(values[:cut]).with_values(values[cut:])
    np.testing.assert_array_equal(parts.counts, whole.counts)
    assert whole.counts.sum() == whole.magnitudes.sum() == len(values)


# What is refused


def test_a_symmetric_range_holds_the_range() -> None:
    found = ActivationRange(low=-0.17, high=5.0)
    assert found.symmetric == ActivationRange(low=-5.0, high=5.0)
    assert found.magnitude == 5.0


@pytest.mark.parametrize(("low", "high"), [(1.0, 0.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_a_range_has_finite_ends_in_order(low: float, high: float) -> None:
    with pytest.raises(InputError, match="not a range of values"):
        ActivationRange(low=low, high=high)


@pytest.mark.parametrize("percentile", [0.0, -1.0, 100.1, float("nan")])
def test_what_is_no_percentile_is_refused(percentile: float) -> None:
    with pytest.raises(InputError, match="the percentile is not one"):
        collect_ranges(lookup(), ["x"], [batch_of([3], width=3)], percentile=percentile)


def test_no_batches_are_refused() -> None:
    with pytest.raises(InputError, match="nothing to measure activations on"):
        collect_ranges(lookup(), ["x"], [])


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(InputError, match="no activation of that name; got z"):
        collect_ranges(lookup(), ["x", "z"], [batch_of([3], width=3)])


def test_an_activation_that_is_not_finite_is_refused() -> None:
    table = TABLE.copy()
    table[:, 0] = np.nan
    with pytest.raises(InputError, match="the activation x is not finite on the calibration pairs"):
        collect_ranges(lookup(table), ["x"], [batch_of([3], width=3)])
