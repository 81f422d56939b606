"""How many axes each tensor of a graph has, for models of any size."""

from __future__ import annotations

import onnx
from onnx import ModelProto, TensorProto, helper

_SMALL_ELEMENTS = 1024
"""Tensors up to this size may be shapes and axes, whose values shape inference reads."""


def infer_ranks(model: ModelProto) -> dict[str, int]:
    """Number of axes by tensor name, for the tensors where shape inference finds it out.

    Shape inference refuses a message of 2 GB, so it is shown a copy whose large weights are inputs without content.
    """
    light = ModelProto()
    light.opset_import.extend(model.opset_import)
    light.ir_version = model.ir_version
    light.graph.name = model.graph.name
    light.graph.node.extend(model.graph.node)
    light.graph.input.extend(model.graph.input)
    light.graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        if _elements(tensor) <= _SMALL_ELEMENTS:
            light.graph.initializer.append(tensor)
        else:
            light.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    inferred = onnx.shape_inference.infer_shapes(light)
    known = [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
    return {value.name: len(value.type.tensor_type.shape.dim) for value in known if value.type.tensor_type.HasField("shape")}


def _elements(tensor: TensorProto) -> int:
    count = 1
    for dimension in tensor.dims:
        count *= dimension
    return count
