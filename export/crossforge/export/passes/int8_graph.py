"""Writing a graph anew with int8 weights and lookup tables: what the int8 passes share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from crossforge.export.passes.graph import names_read
from crossforge.export.passes.rounding import LEVELS, column_scales, quantize_columns, round_to_nearest

_EMBEDDING_ROWS = 1000
"""A lookup table with fewer rows (positions, segments) is not worth quantizing."""


class Int8Graph:
    """A graph on its way from float32 to int8. Nodes are added in order; weights that nothing reads any more are dropped.

    Args:
        model: The graph; rewritten in place by :meth:`rewrite`.
        rounded: Weights that are rounded already, by name, int8 [in, out] in units of
            :func:`~crossforge.export.passes.rounding.column_scales`.
        levels: Steps of a weight on each side of zero.
    """

    def __init__(
        self, model: ModelProto, *, rounded: Mapping[str, NDArray[np.int8]] | None = None, levels: int = LEVELS
    ) -> None:
        self._graph = model.graph
        self._rounded = rounded or {}
        self._levels = levels
        self._weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self._nodes: list[NodeProto] = []
        self._constants: dict[str, TensorProto] = {}
        self.tables = 0
        """Lookup tables quantized so far."""

    def rewrite(
        self, products: Collection[str], rewrite_product: Callable[[NodeProto], None], *, quantize_embeddings: bool
    ) -> None:
        """Walk the graph once.

        Args:
            products: Outputs of the products to rewrite.
            rewrite_product: Adds the nodes that take a product's place.
            quantize_embeddings: Also store lookup tables of 1,000 rows or more as int8.
        """
        for node in self._graph.node:
            if node.output[0] in products:
                rewrite_product(node)
            elif quantize_embeddings and self._is_embedding(node):
                self._rewrite_embedding(node)
            else:
                self._nodes.append(node)
        nodes = [*self._nodes]
        del self._graph.node[:]
        self._graph.node.extend(nodes)
        used = {*(name for node in nodes for name in names_read(node)), *(output.name for output in self._graph.output)}
        kept = [tensor for tensor in self._graph.initializer if tensor.name in used]
        del self._graph.initializer[:]
        self._graph.initializer.extend([*kept, *self._constants.values()])
        del self._graph.value_info[:]

    def add(self, op_type: str, inputs: Sequence[str], output: str, **attributes: Any) -> None:
        """Add a node with one output."""
        self._nodes.append(helper.make_node(op_type, list(inputs), [output], name=f"{output}_{op_type}", **attributes))

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        """Add a constant, once; gives its name."""
        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(value, name)
        return name

    def quantize_weight(self, name: str) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """A weight [in, out] in int8, and the scale of each column: [out]."""
        weight = numpy_helper.to_array(self._weights[name])
        scales = column_scales(weight, self._levels)
        rounded = self._rounded.get(name)
        return (round_to_nearest(weight, scales, self._levels) if rounded is None else rounded), scales

    def _is_embedding(self, node: NodeProto) -> bool:
        return (
            node.op_type == "Gather"
            and self._is_matrix(node.input[0])
            and all(attribute.i == 0 for attribute in node.attribute)  # the axis, which is 0 where it is left out
            and self._weights[node.input[0]].dims[0] >= _EMBEDDING_ROWS
        )

    def _is_matrix(self, name: str) -> bool:
        tensor = self._weights.get(name)
        return tensor is not None and len(tensor.dims) == 2 and tensor.data_type == TensorProto.FLOAT

    def _rewrite_embedding(self, node: NodeProto) -> None:
        table, ids = node.input
        rows, scale = quantize_columns(numpy_helper.to_array(self._weights[table]).T)
        out = node.output[0]
        integers = self.constant(f"{table}_rows_int8", np.ascontiguousarray(rows.T))
        scales = self.constant(f"{table}_rows_scale", scale[:, None])
        self.add("Gather", [integers, ids], f"{out}_int8", axis=0)
        self.add("Cast", [f"{out}_int8"], f"{out}_float", to=TensorProto.FLOAT)
        self.add("Gather", [scales, ids], f"{out}_scale", axis=0)
        self.add("Mul", [f"{out}_float", f"{out}_scale"], out)
        self.tables += 1
