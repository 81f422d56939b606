"""Finding the linear layers of an encoder: where nearly all the arithmetic of a reranker is."""

from __future__ import annotations

from dataclasses import dataclass

from onnx import ModelProto, NodeProto, TensorProto

from crossforge.export.passes.graph import find_ranks


@dataclass(frozen=True)
class EncoderProduct:
    """A matrix product of an activation [batch, sequence, in] with a constant weight [in, out]."""

    node: NodeProto
    activation: str
    weight: str
    width: int
    """The activation's hidden size, ``in``."""


def find_encoder_products(model: ModelProto) -> list[EncoderProduct]:
    """The linear layers over tokens, in the graph's order.

    The head's layers work on one row a pair, [batch, hidden], and are not among them.
    """
    matrices = {
        tensor.name: tensor.dims[0]
        for tensor in model.graph.initializer
        if len(tensor.dims) == 2 and tensor.data_type == TensorProto.FLOAT
    }
    ranks = find_ranks(model)
    return [
        EncoderProduct(node, node.input[0], node.input[1], matrices[node.input[1]])
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in matrices and ranks.get(node.input[0]) == 3
    ]
