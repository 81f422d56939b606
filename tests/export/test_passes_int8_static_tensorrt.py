"""The symmetric form is what TensorRT wants: its compiler folds every product into one of eight bits. Needs no GPU."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

from crossforge.export.options import RangeMethod
from crossforge.export.passes import keep_first_row
from crossforge.export.passes.int8_static import ActivationType, quantize_int8_static
from crossforge.export.passes.products import find_encoder_products
from crossforge.export.ranges import ActivationRange, collect_ranges

ENGINE_LAYER = re.compile(r"Name: .*?, LayerType: (\w+), Inputs: (.*), Constants: (.*), Outputs: .* Metadata: (.*)")
SHAPES = ((1, 8), (8, 64), (32, 96))
"""Smallest, usual and largest batch: [pairs, tokens]."""


@pytest.fixture(scope="module")
def trt() -> Any:
    return pytest.importorskip("tensorrt_rtx", reason="needs crossforge[rtx]")


@pytest.fixture(scope="module")
def cut(tiny_graph: ModelProto) -> ModelProto:
    return keep_first_row(tiny_graph).model


@pytest.fixture(scope="module")
def cut_ranges(cut: ModelProto) -> dict[str, ActivationRange]:
    ids = np.random.default_rng(1).integers(5, 300, size=(4, 24))
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    return collect_ranges(cut, [p.activation for p in find_encoder_products(cut)], [batch], RangeMethod.MINMAX)


def build(trt: Any, model: ModelProto) -> tuple[Any, list[str]]:
    """The engine for an Ada GPU with one optimization profile, None where there is none; and what the compiler said."""
    said: list[str] = []

    class Listener(trt.ILogger):  # type: ignore[misc]
        def log(self, _severity: Any, message: str) -> None:
            said.extend(message.splitlines())

    listener = Listener()
    builder = trt.Builder(listener)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, listener)
    if not parser.parse(model.SerializeToString()):
        return None, said
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        profile.set_shape(network.get_input(index).name, *SHAPES)
    config.add_optimization_profile(profile)
    return builder.build_serialized_network(network, config), said


def test_every_product_compiles_to_one_of_eight_bits(
    trt: Any, cut: ModelProto, cut_ranges: dict[str, ActivationRange]
) -> None:
    engine, said = build(trt, quantize_int8_static(cut, cut_ranges, activations=ActivationType.INT8).model)
    assert engine is not None
    assert engine.nbytes > 0
    layers = [found.groups() for line in said if (found := ENGINE_LAYER.match(line))]
    integer = [
        sources for kind, inputs, weights, sources in layers if kind == "gemm" and "Int8" in inputs and "Int8" in weights
    ]
    outputs = [product.node.output[0] for product in find_encoder_products(cut)]
    assert len(outputs) == 12
    assert [name for name in outputs if not any(f"{name}_MatMul]" in sources for sources in integer)] == []


def test_a_float_graph_compiles_to_no_integer_product(trt: Any, cut: ModelProto) -> None:
    engine, said = build(trt, cut)
    assert engine is not None
    assert any(ENGINE_LAYER.match(line) for line in said)
    assert not any("Int8" in found[3] for line in said if (found := ENGINE_LAYER.match(line)))


def test_the_asymmetric_form_is_not_for_tensorrt(trt: Any, cut: ModelProto, cut_ranges: dict[str, ActivationRange]) -> None:
    engine, said = build(trt, quantize_int8_static(cut, cut_ranges, activations=ActivationType.UINT8).model)
    assert engine is None
    assert any("Non-zero zero point is not supported" in message for message in said)


def test_lookup_tables_of_eight_bits_are_not_for_tensorrt(
    trt: Any, cut: ModelProto, cut_ranges: dict[str, ActivationRange]
) -> None:
    model = quantize_int8_static(cut, cut_ranges, activations=ActivationType.INT8, quantize_embeddings=True).model
    engine, said = build(trt, model)
    assert engine is None
    assert any("only allowed before DQ" in message for message in said)
