"""What a bi-encoder does after its transformer, as nodes of the graph: pooling, dense layers, normalization.

A mean, a weighted mean and the last token are each a sum of the tokens' vectors with weights, so they are one small matrix
product, [1, sequence] x [sequence, hidden] a text. The weights are counted in integers, which float16 could not do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from crossforge.export.bi_encoder import DenseActivation, DenseLayer
from crossforge.profiles import Embedding, Pooling, SourceError

OUTPUT = "sentence_embedding"
"""The graph's output; sentence-transformers' name for it."""
_MASK = "attention_mask"
_LOWEST = np.float32(-65504.0)
"""What padding is for a maximum; the least that float16 holds too."""
_SHORTEST = np.float32(1e-12)
"""A vector shorter than this is not scaled to length 1; torch's constant."""
_ACTIVATIONS = {DenseActivation.TANH: "Tanh", DenseActivation.RELU: "Relu", DenseActivation.SIGMOID: "Sigmoid"}


def append_pooling(model: ModelProto, embedding: Embedding, dense: Sequence[DenseLayer] = ()) -> ModelProto:
    """Let a transformer's graph end in one vector a text.

    Args:
        model: One output, the last hidden state, float32 [batch, sequence, hidden], and among its inputs ``attention_mask``,
            int64 [batch, sequence], whose rows are padded on the right; not changed.
        embedding: The modes of pooling, whether vectors are scaled to length 1, and their dimension.
        dense: Layers between the two.

    Returns:
        A graph with the same inputs and the one output ``sentence_embedding``, float32 [batch, dimension].

    Raises:
        SourceError: The model takes no attention mask.
    """
    inputs = [value.name for value in model.graph.input]
    if _MASK not in inputs:
        raise SourceError("the transformer takes no attention mask", got=", ".join(inputs), allowed=_MASK)
    result = ModelProto()
    result.CopyFrom(model)
    tail = _Tail(result)
    vector = tail.pool(embedding.pooling)
    for layer in dense:
        vector = tail.apply_dense(vector, layer)
    if embedding.normalize:
        vector = tail.normalize(vector)
    tail.finish(vector, embedding.dimension)
    return result


class _Tail:
    """Adds nodes behind a graph's output."""

    def __init__(self, model: ModelProto) -> None:
        self._graph = model.graph
        self._hidden = model.graph.output[0]
        self._count = 0

    def pool(self, pooling: Sequence[Pooling]) -> str:
        pooled = [self._pool_one(mode) for mode in pooling]
        return pooled[0] if len(pooled) == 1 else self._node("Concat", pooled, axis=1)

    def apply_dense(self, vector: str, layer: DenseLayer) -> str:
        bias = layer.bias if layer.bias is not None else np.zeros(len(layer.weight), np.float32)
        weight, added = self._constant(layer.weight), self._constant(bias)
        vector = self._node("Gemm", [vector, weight, added], transB=1)
        if layer.activation is DenseActivation.GELU:  # as an operator it comes with opset 20
            scaled = self._node("Mul", [vector, self._constant(np.float32(1 / np.sqrt(2)))])
            grown = self._node("Add", [self._node("Erf", [scaled]), self._constant(np.float32(1))])
            return self._node("Mul", [self._node("Mul", [vector, grown]), self._constant(np.float32(0.5))])
        return (
            vector if layer.activation is DenseActivation.IDENTITY else self._node(_ACTIVATIONS[layer.activation], [vector])
        )

    def normalize(self, vector: str) -> str:
        # Not ReduceL2: the shape inference by which ONNX Runtime fuses for CUDA does not know it, and would fuse nothing.
        squares = self._node("ReduceSum", [self._node("Mul", [vector, vector]), self._axis(1)], keepdims=1)
        length = self._node("Sqrt", [squares])
        return self._node("Div", [vector, self._node("Max", [length, self._constant(_SHORTEST)])])

    def finish(self, vector: str, dimension: int) -> None:
        for node in self._graph.node:
            node.output[:] = [OUTPUT if name == vector else name for name in node.output]
        batch = self._hidden.type.tensor_type.shape.dim[0].dim_param or "batch_size"
        del self._graph.output[:]
        self._graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [batch, dimension]))

    def _pool_one(self, mode: Pooling) -> str:
        hidden = self._hidden.name
        if mode is Pooling.CLS:
            return self._node("Gather", [hidden, self._constant(np.int64(0))], axis=1)
        if mode is Pooling.MAX:
            real = self._node("Unsqueeze", [self._node("Cast", [_MASK], to=TensorProto.BOOL), self._axis(-1)])
            return self._node(
                "ReduceMax", [self._node("Where", [real, hidden, self._constant(_LOWEST)]), self._axis(1)], keepdims=0
            )
        row = self._node("Unsqueeze", [self._weights(mode), self._axis(1)])
        return self._node("Squeeze", [self._node("MatMul", [row, hidden]), self._axis(1)])

    def _weights(self, mode: Pooling) -> str:
        """Each token's weight in the sum, 0 for padding: float32 [batch, sequence]."""
        count = self._node("ReduceSum", [_MASK, self._axis(1)], keepdims=1)
        count = self._node("Max", [count, self._constant(np.int64(1))])  # a text may have no token at all
        mask, tokens = self._float(_MASK), self._float(count)
        if mode is Pooling.MEAN:
            return self._node("Div", [mask, tokens])
        if mode is Pooling.MEAN_SQRT_LEN:
            return self._node("Div", [mask, self._node("Sqrt", [tokens])])
        position = self._node("CumSum", [_MASK, self._constant(np.int64(1))])  # from 1, and the last one's in the padding
        if mode is Pooling.LAST_TOKEN:
            return self._node("Mul", [self._float(self._node("Equal", [position, count])), mask])
        weights = self._node("Mul", [self._node("Div", [self._float(position), tokens]), mask])
        return self._node("Div", [weights, self._node("ReduceSum", [weights, self._axis(1)], keepdims=1)])

    def _float(self, name: str) -> str:
        return self._node("Cast", [name], to=TensorProto.FLOAT)

    def _axis(self, axis: int) -> str:
        return self._constant(np.asarray([axis], np.int64))

    def _constant(self, value: NDArray[np.generic] | np.generic) -> str:
        name = f"pooling_constant_{self._count}"
        self._count += 1
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def _node(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        name = f"pooling_{operator}_{self._count}"
        self._count += 1
        self._graph.node.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name
