"""What passes over float graphs of standard operators require, checked in one place."""

from __future__ import annotations

from onnx import ModelProto

from crossforge.export.onnx import opset_of
from crossforge.export.passes.graph import foreign_operators
from crossforge.export.passes.int8_dynamic import refuse_quantized
from crossforge.profiles import InputError


def why_not_plain(model: ModelProto, *, oldest_opset: int) -> str | None:
    """Why a graph is not a float graph of standard operators, in words; None if it is one."""
    try:
        refuse_quantized(model)
    except InputError as error:
        return str(error)
    if foreign := sorted(foreign_operators(model)):
        return f"the graph is fused already ({', '.join(foreign)}); apply this pass to the graph of standard operators"
    if opset_of(model) < oldest_opset:
        return f"the graph's opset is {opset_of(model)}; {oldest_opset} or later is needed"
    return None
