"""A reranker small enough to check by hand: the mean of the tokens' vectors, times a matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Encoding

_DIMENSIONS = 4
_OPSET = 17
_IR_VERSION = 9


@dataclass(frozen=True, kw_only=True)
class MeanModel:
    """Random weights, the ONNX graph of them, and the same arithmetic in numpy."""

    labels: int = 1
    vocabulary: int = 512
    uses_type_ids: bool = True
    has_head: bool = True
    """Without it, the graph ends at the tokens' vectors: [batch, sequence, dimensions]."""
    seed: int = 0

    def logits(self, encodings: Sequence[Encoding]) -> NDArray[np.float32]:
        """What the graph must answer: float32 [n, labels]."""
        words, segments, head = self._weights()
        rows = []
        for encoding in encodings:
            vectors = words[encoding.ids] + (segments[encoding.type_ids] if self.uses_type_ids else 0)
            rows.append(vectors.mean(axis=0) @ head)
        return np.asarray(rows, dtype=np.float32).reshape(-1, self.labels)

    def save(self, path: Path, *, external_data: bool = False) -> tuple[Path, ...]:
        """Write the graph, and say which files it took."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if not external_data:
            onnx.save_model(self._graph(), path)
            return (path,)
        weights = path.with_suffix(".onnx_data")
        onnx.save_model(self._graph(), path, save_as_external_data=True, location=weights.name, size_threshold=256)
        return (path, weights)

    def _weights(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        random = np.random.default_rng(self.seed)
        words = random.standard_normal((self.vocabulary, _DIMENSIONS)).astype(np.float32)
        segments = random.standard_normal((2, _DIMENSIONS)).astype(np.float32)
        head = random.standard_normal((_DIMENSIONS, self.labels)).astype(np.float32)
        return words, segments, head

    def _graph(self) -> onnx.ModelProto:
        words, segments, head = self._weights()
        nodes = [helper.make_node("Gather", ["words", "input_ids"], ["word_vectors"])]
        vectors = "word_vectors"
        if self.uses_type_ids:
            nodes.append(helper.make_node("Gather", ["segments", "token_type_ids"], ["segment_vectors"]))
            nodes.append(helper.make_node("Add", ["word_vectors", "segment_vectors"], ["vectors"]))
            vectors = "vectors"
        nodes += [
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask", "last_axis"], ["column_mask"]),
            helper.make_node("Mul", [vectors, "column_mask"], ["masked"]),
            helper.make_node("ReduceSum", ["masked", "sequence_axis"], ["sum"], keepdims=0),
            helper.make_node("ReduceSum", ["column_mask", "sequence_axis"], ["count"], keepdims=0),
            helper.make_node("Div", ["sum", "count"], ["mean"]),
            helper.make_node("MatMul", ["mean", "head"], ["logits"]),
        ]
        name = "logits" if self.has_head else "masked"
        shape: list[str | int | None] = ["batch", self.labels] if self.has_head else ["batch", "sequence", _DIMENSIONS]
        inputs = ("input_ids", "attention_mask", *(("token_type_ids",) if self.uses_type_ids else ()))
        graph = helper.make_graph(
            nodes,
            "mean_reranker",
            [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"]) for name in inputs],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)],
            initializer=[
                numpy_helper.from_array(words, "words"),
                numpy_helper.from_array(segments, "segments"),
                numpy_helper.from_array(head, "head"),
                numpy_helper.from_array(np.asarray([-1]), "last_axis"),
                numpy_helper.from_array(np.asarray([1]), "sequence_axis"),
            ],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
        onnx.checker.check_model(model)
        return model
