"""Finding GELU in a graph, and the int8 code that its outputs get."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper
from scipy.special import erf

from crossforge.export.passes import quantize_int8_dynamic
from crossforge.export.passes.gelu import MINIMUM, find_gelu_outputs
from support.onnx_sessions import run

SPELLED_OUT = """
    halved = Div(x, root)
    e = Erf(halved)
    plus = Add(e, one)
    product = Mul(x, plus)
    g = Mul(product, half)
"""


def graph(body: str, *, root: float = 2**0.5, half: float = 0.5, opset: int = 18) -> ModelProto:
    """A model that multiplies ``g``, which the body makes of ``x``, with the identity."""
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": {opset}, "com.microsoft": 1]>'
        f" g (float[b, s, 16] x, float[b, s, 16] other) => (float[b, s, 16] y) {{ {body} y = MatMul(g, w) }}"
    )
    weights = {"one": 1.0, "half": half, "root": root, "reciprocal": 1 / root, "w": np.eye(16)}
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v, np.float32), name) for name, v in weights.items())
    return model


def test_gelu_spelled_out_is_found() -> None:
    assert find_gelu_outputs(graph(SPELLED_OUT)) == {"g"}


@pytest.mark.parametrize(
    ("written", "otherwise"),
    [
        ("Div(x, root)", "Mul(x, reciprocal)"),
        ("Add(e, one)", "Add(one, e)"),
        ("Mul(x, plus)", "Mul(plus, x)"),
        ("Mul(product, half)", "Mul(half, product)"),
    ],
)
def test_gelu_spelled_out_otherwise_is_found(written: str, otherwise: str) -> None:
    assert find_gelu_outputs(graph(SPELLED_OUT.replace(written, otherwise))) == {"g"}


@pytest.mark.parametrize("operator", ["com.microsoft.Gelu", "com.microsoft.FastGelu"])
def test_gelu_as_one_operator_is_found(operator: str) -> None:
    assert find_gelu_outputs(graph(f"g = {operator}(x)")) == {"g"}


@pytest.mark.parametrize(
    "model",
    [
        graph("g = Tanh(x)"),
        graph("g = Mul(x, half)"),
        graph("e = Erf(x) g = Mul(e, half)"),
        graph(SPELLED_OUT, root=2.0),
        graph(SPELLED_OUT, half=1.0),
        graph(SPELLED_OUT.replace("Mul(x, plus)", "Mul(other, plus)")),
        graph(SPELLED_OUT.replace("Erf", "Tanh")),
    ],
    ids=["tanh", "scaled", "erf", "another-divisor", "not-halved", "another-gate", "another-function"],
)
def test_what_is_not_gelu_is_not_taken_for_it(model: ModelProto) -> None:
    assert find_gelu_outputs(model) == set()


def test_every_feed_forward_of_a_bert_has_one(tiny_graph: ModelProto) -> None:
    found = find_gelu_outputs(tiny_graph)
    assert len(found) == 2
    readers = [node for node in tiny_graph.graph.node if found & set(node.input)]
    assert [node.op_type for node in readers] == ["MatMul", "MatMul"]


def test_gelu_never_falls_below_the_minimum() -> None:
    x = np.linspace(-3, 3, 1_000_001)
    exact = 0.5 * x * (1 + erf(x / np.sqrt(2)))
    by_tanh = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    for form in (exact, by_tanh):
        assert MINIMUM < form.min() < MINIMUM + 1e-3


@pytest.mark.usefixtures("exact_int8")
@pytest.mark.parametrize("largest", [0.01, 0.5, 1.6, 4.0, 100.0])
def test_the_code_of_gelu_clips_nothing_and_has_231_steps_above_zero(largest: float) -> None:
    x = np.linspace(-4, largest, 4 * 16, dtype=np.float32).reshape(1, 4, 16)
    gelu = 0.5 * x * (1 + erf(x / np.sqrt(2)))
    quantized = quantize_int8_dynamic(graph(SPELLED_OUT)).model
    answer = run(quantized, x=x, other=x)
    step = np.maximum(gelu.max(axis=-1, keepdims=True) / 231, -MINIMUM / 24)
    assert (np.abs(answer - gelu) <= step / 2 * 1.01).all()
