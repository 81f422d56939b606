"""The recipe with fixed scales: what it composes, and that it is worth it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

from crossforge.export.options import RangeMethod
from crossforge.export.passes.int8_static import ActivationType, quantize_int8_static
from crossforge.export.passes.products import find_encoder_products
from crossforge.export.passes.rounding import REDUCED_LEVELS
from crossforge.export.ranges import collect_ranges
from crossforge.export.repair import find_repair
from crossforge.export.static_quantization import StaticRecipe, prepare_int8_static
from crossforge.profiles import InputError
from crossforge.runtime.batching import Batch
from support.onnx_sessions import open_session

BOTH = pytest.mark.parametrize("activations", list(ActivationType))
OUTLIER_CHANNEL = 5
OUTLIER = 60.0


@pytest.fixture(scope="module")
def fragile(tiny_graph: ModelProto) -> ModelProto:
    """The tiny model with one channel of its LayerNorms sixty times as large, and read with weights as much smaller."""
    model = ModelProto()
    model.CopyFrom(tiny_graph)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    norms = {node.output[0]: node for node in model.graph.node if node.op_type == "LayerNormalization"}
    read = [product for product in find_encoder_products(model) if product.activation in norms]
    loud = {name for product in read for name in norms[product.activation].input[1:]}
    for names, factor in ((loud, OUTLIER), ({product.weight for product in read}, 1 / OUTLIER)):
        for name in names:
            values = numpy_helper.to_array(tensors[name]).copy()
            values[OUTLIER_CHANNEL] *= factor
            tensors[name].CopyFrom(numpy_helper.from_array(values, name))
    return model


@pytest.fixture(scope="module")
def recipe(fragile: ModelProto, batches: list[Batch]) -> StaticRecipe:
    return prepare_int8_static(fragile, batches, activations=ActivationType.INT8, method=RangeMethod.MINMAX)


def logits_of(model: ModelProto, batches: list[Batch]) -> np.ndarray:
    session = open_session(model)
    return np.concatenate([session.run(None, batch)[0] for batch in batches])


@BOTH
@pytest.mark.usefixtures("exact_int8")
def test_the_recipe_saves_a_model_that_plain_static_int8_breaks(
    fragile: ModelProto, batches: list[Batch], held_out: list[Batch], activations: ActivationType
) -> None:
    expected = logits_of(fragile, held_out)
    ranges = collect_ranges(fragile, [p.activation for p in find_encoder_products(fragile)], batches, RangeMethod.MINMAX)
    plain = quantize_int8_static(fragile, ranges, activations=activations).model
    careful = prepare_int8_static(fragile, batches, activations=activations, method=RangeMethod.MINMAX).apply().model
    losses = [np.abs(logits_of(model, held_out) - expected).mean() for model in (plain, careful)]
    assert losses[1] < losses[0] / 2


def test_it_quantizes_every_layer_of_the_smoothed_and_cut_model(recipe: StaticRecipe) -> None:
    assert len(recipe.products) == 2 * 6
    result = recipe.apply()
    assert result.changed
    assert result.notes == (
        "5 activations smoothed, 12 weights rounded by output error",
        "12 matrix products and 0 lookup tables quantized to int8, 9 activation tensors to int8 with a fixed scale",
    )
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in result.model.graph.initializer}
    for name in recipe.products:
        np.testing.assert_array_equal(stored[f"{name}_int8"], recipe.prepared.rounded[name])


@BOTH
def test_its_settings_say_how_it_quantizes(recipe: StaticRecipe, activations: ActivationType) -> None:
    settings = replace(recipe, activations=activations).settings
    assert settings["method"] == "static"
    assert settings["activations"] == f"{activations}, one fixed scale a tensor (minmax), LayerNorm outputs smoothed"
    tables = replace(recipe, activations=activations).apply().notes[1].split(" and ")[1][0]
    assert (settings["embeddings"] == "float32") is (tables == "0")


def test_with_every_layer_kept_it_scores_like_the_float_model(
    fragile: ModelProto, recipe: StaticRecipe, held_out: list[Batch]
) -> None:
    kept = recipe.apply(keep_fp32=recipe.products, quantize_embeddings=False)
    assert not kept.changed
    assert logits_of(kept.model, held_out) == pytest.approx(logits_of(fragile, held_out), abs=1e-3)


def test_the_repair_search_works_on_it(recipe: StaticRecipe) -> None:
    sensitive = recipe.products[5]
    repair = find_repair(
        recipe.products, loss=lambda quantized: float(sensitive in quantized), passes=lambda kept: sensitive in kept
    )
    assert repair.keep_fp32 == (sensitive,)
    result = recipe.apply(keep_fp32=repair.keep_fp32)
    assert sensitive in {tensor.name for tensor in result.model.graph.initializer}


def test_levels_bound_its_weights(tiny_graph: ModelProto, batches: list[Batch]) -> None:
    reduced = prepare_int8_static(tiny_graph, batches, activations=ActivationType.UINT8, levels=REDUCED_LEVELS)
    result = reduced.apply().model
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in result.graph.initializer}
    assert max(np.abs(stored[f"{name}_int8"].astype(int)).max() for name in reduced.products) == REDUCED_LEVELS


def test_a_quantized_model_is_not_prepared_again(recipe: StaticRecipe, batches: list[Batch]) -> None:
    with pytest.raises(InputError, match="already quantized"):
        prepare_int8_static(recipe.apply().model, batches, activations=ActivationType.INT8)
