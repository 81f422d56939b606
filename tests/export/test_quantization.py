"""Calibration, smoothing and the recipe made of them, on a tiny model."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto

from crossforge.export.calibration import collect_statistics, read_calibration
from crossforge.export.dynamic_quantization import quantize_int8
from crossforge.export.onnx import export_onnx
from crossforge.export.pairs import calibration_pairs, verification_pairs
from crossforge.export.passes import quantize_int8_dynamic, smooth
from crossforge.export.passes.products import find_encoder_products
from crossforge.export.source import LoadedSource
from crossforge.profiles import InputError
from crossforge.runtime.batching import Batch
from support.calibration import batches_of
from support.onnx_sessions import open_session
from support.tiny_models import MAX_LENGTH

OUTLIER_CHANNEL = 5
OUTLIER = 60.0


@pytest.fixture(scope="module")
def fragile(tiny_source: LoadedSource) -> ModelProto:
    """The tiny model with one channel of each LayerNorm sixty times as large, and read with weights as much smaller."""
    model: Any = copy.deepcopy(tiny_source.model)
    with torch.no_grad():
        norms = [model.bert.embeddings.LayerNorm]
        for layer in model.bert.encoder.layer:
            attention = layer.attention.self
            for linear in (attention.query, attention.key, attention.value, layer.intermediate.dense):
                linear.weight[:, OUTLIER_CHANNEL] /= OUTLIER
            norms += [layer.attention.output.LayerNorm, layer.output.LayerNorm]
        for norm in norms[:-1]:  # the head reads the last one
            norm.weight[OUTLIER_CHANNEL] *= OUTLIER
            norm.bias[OUTLIER_CHANNEL] *= OUTLIER
    return export_onnx(model)


def logits_of(model: ModelProto, batches: list[Batch]) -> np.ndarray:
    session = open_session(model)
    names = {value.name for value in session.get_inputs()}
    return np.concatenate([session.run(None, {k: v for k, v in batch.items() if k in names})[0] for batch in batches])


def widths_of(model: ModelProto) -> dict[str, int]:
    return {product.activation: product.width for product in find_encoder_products(model)}


def test_statistics_do_not_see_padding(tiny_graph: ModelProto, batches: list[Batch]) -> None:
    padded = [
        {name: np.pad(value, ((0, 0), (0, MAX_LENGTH - value.shape[1]))) for name, value in batch.items()}
        for batch in batches
    ]
    assert any(wide["input_ids"].shape != batch["input_ids"].shape for wide, batch in zip(padded, batches, strict=True))
    widths = widths_of(tiny_graph)
    plain = {k: v for chunk in collect_statistics(tiny_graph, widths, batches) for k, v in chunk.items()}
    wider = {k: v for chunk in collect_statistics(tiny_graph, widths, padded) for k, v in chunk.items()}
    assert plain.keys() == widths.keys()
    for name, statistics in plain.items():
        assert statistics.tokens == wider[name].tokens == sum(int(batch["attention_mask"].sum()) for batch in batches)
        assert statistics.largest == pytest.approx(wider[name].largest, rel=1e-3)
        assert statistics.gram == pytest.approx(wider[name].gram, rel=1e-3, abs=1e-4)


def test_every_encoder_layer_is_found_and_the_head_is_not(tiny_graph: ModelProto) -> None:
    products = find_encoder_products(tiny_graph)
    assert len(products) == 2 * 6, "query, key, value, attention output and two feed-forward layers, twice"


def test_smoothing_changes_no_score(tiny_graph: ModelProto, batches: list[Batch], held_out: list[Batch]) -> None:
    before = tiny_graph.SerializeToString()
    for statistics in collect_statistics(tiny_graph, widths_of(tiny_graph), batches):
        smoothed = smooth(tiny_graph, statistics)
        assert smoothed.changed
        assert logits_of(smoothed.model, held_out) == pytest.approx(logits_of(tiny_graph, held_out), abs=1e-4)
        again = smooth(smoothed.model, {name: s for name, s in statistics.items() if name not in smoothed.sources.values()})
        assert not again.changed
    assert tiny_graph.SerializeToString() == before


def test_smoothing_takes_an_outlier_out_of_the_activation(fragile: ModelProto, batches: list[Batch]) -> None:
    smoothed = 0
    for statistics in collect_statistics(fragile, widths_of(fragile), batches):
        result = smooth(fragile, statistics)
        for name, scale in result.scales.items():
            smoothed += 1
            before = statistics[result.sources[name]]
            after = before.divided_by(scale)
            assert before.largest.max() / np.median(before.largest) > OUTLIER / 4
            assert after.largest.max() / np.median(after.largest) < before.largest.max() / np.median(before.largest) / 3
    assert smoothed


@pytest.mark.usefixtures("exact_int8")
def test_the_recipe_saves_a_model_that_plain_int8_breaks(
    fragile: ModelProto, batches: list[Batch], held_out: list[Batch]
) -> None:
    expected = logits_of(fragile, held_out)
    plain = np.abs(logits_of(quantize_int8_dynamic(fragile).model, held_out) - expected).mean()
    careful = np.abs(logits_of(quantize_int8(fragile, batches).model, held_out) - expected).mean()
    assert careful < plain / 2


@pytest.mark.usefixtures("exact_int8")
def test_the_recipe_beats_plain_int8_on_the_demo_model(demo_bundle: Path) -> None:
    model = onnx.load(str(demo_bundle / "onnx" / "model.onnx"))
    held_out = batches_of(demo_bundle, verification_pairs()[:2])
    expected = logits_of(model, held_out)
    plain = np.abs(logits_of(quantize_int8_dynamic(model).model, held_out) - expected).mean()
    shipped = onnx.load(str(demo_bundle / "onnx" / "model_int8.onnx"))
    assert np.abs(logits_of(shipped, held_out) - expected).mean() < plain


def test_built_in_calibration_shares_no_text_with_verification() -> None:
    tuned = {p.text for r in calibration_pairs() for p in r.passages} | {r.query for r in calibration_pairs()}
    judged = {p.text for r in verification_pairs() for p in r.passages} | {r.query for r in verification_pairs()}
    assert tuned.isdisjoint(judged)
    assert len(read_calibration(None)) == 12


@pytest.mark.parametrize("texts", [["a"] * 40, [str(i) for i in range(15)]])
def test_too_few_different_pairs_are_refused(tmp_path: Path, texts: list[str]) -> None:
    path = tmp_path / "pairs.jsonl"
    passages = [{"id": str(i), "text": text} for i, text in enumerate(texts)]
    path.write_text(json.dumps({"qid": "1", "query": "q", "passages": passages}))
    with pytest.raises(InputError, match="too few different pairs"):
        read_calibration(path)


def test_a_quantized_model_is_not_quantized_again(tiny_bundle: Path, batches: list[Batch]) -> None:
    with pytest.raises(InputError, match="already quantized"):
        quantize_int8(onnx.load(str(tiny_bundle / "onnx" / "model_int8.onnx")), batches)
