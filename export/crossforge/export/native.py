"""From an int8 recipe to the file that the native engine reads: which tensor of the graph plays which part.

The engine computes one kind of encoder and no other, so an architecture that is not on its list is refused here, with the
reason. That the parts were told apart rightly is proven afterwards like any variant: by the parity gate.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, numpy_helper

from crossforge.export.dynamic_quantization import DynamicRecipe
from crossforge.export.passes.rounding import column_scales, quantize_columns, round_to_nearest
from crossforge.profiles import InputError, SourceError
from crossforge.runtime.sessions.native.encoder_file import Encoder, EncoderShape

_ROBERTA = ("roberta", "xlm-roberta", "camembert")
_MODEL_TYPES = ("bert", *_ROBERTA)
_HEAD_WIDTHS = (32, 64)
_LINEAR = {
    "attention/self/query": "query",
    "attention/self/key": "key",
    "attention/self/value": "value",
    "attention/output/dense": "attention_output",
    "intermediate/dense": "feed_forward_in",
    "output/dense": "feed_forward_out",
}
_NORM = {"attention/output/LayerNorm": "attention_norm", "output/LayerNorm": "feed_forward_norm"}
_TABLES = {
    "word_embeddings": "words",
    "position_embeddings": "positions",
    "token_type_embeddings": "segments",
}
_LAYER = re.compile(r"/encoder/layer\.(\d+)/(.+)/(?:MatMul|LayerNormalization)_output_0$")
_TABLE = re.compile(r"/embeddings/(\w+)/Gather_output_0$")
_EMBEDDING_NORM = "/embeddings/LayerNorm/LayerNormalization_output_0"


def make_encoder(recipe: DynamicRecipe, config: Mapping[str, Any]) -> Encoder:
    """Gather what the native engine computes with.

    Args:
        recipe: The int8 recipe: its graph, its rounded weights and what it smooths.
        config: The checkpoint's config.json.

    Raises:
        SourceError: The engine cannot compute this architecture; the message says what is in the way.
    """
    check_architecture(config)
    tensors = _Graph(recipe).read()
    padding_id = int(config["pad_token_id"]) if config["model_type"] in _ROBERTA else -1
    shape = EncoderShape(
        hidden=int(config["hidden_size"]),
        heads=int(config["num_attention_heads"]),
        layers=int(config["num_hidden_layers"]),
        intermediate=int(config["intermediate_size"]),
        vocabulary=len(tensors["words"]),
        positions=len(tensors["positions"]),
        segments=len(tensors["segments"]),
        labels=tensors["label.weight"].shape[1],
        padding_id=padding_id,
        epsilon=float(config["layer_norm_eps"]),
    )
    wanted = {name: size for name, (_, size) in shape.tensors().items()}
    if found := [name for name, size in wanted.items() if name not in tensors or tensors[name].shape != size]:
        got = tensors[found[0]].shape if found[0] in tensors else "nothing"
        raise _refusal(f"its graph has not the expected {found[0]}", got=f"{got}", allowed=f"{wanted[found[0]]}")
    return Encoder(shape=shape, tensors={name: tensors[name] for name in wanted})


def check_architecture(config: Mapping[str, Any]) -> None:
    """Make sure that the engine computes an architecture.

    Args:
        config: The checkpoint's config.json.

    Raises:
        SourceError: It does not; the message says what is in the way.
    """
    kind = config.get("model_type")
    if kind not in _MODEL_TYPES:
        raise _refusal("it computes other encoders", got=kind, allowed=", ".join(_MODEL_TYPES))
    if config.get("hidden_act") != "gelu":
        raise _refusal("it computes the exact GELU alone", got=config.get("hidden_act"), allowed="gelu")
    if (positions := config.get("position_embedding_type", "absolute")) != "absolute":
        raise _refusal("it adds learned positions to the words", got=positions, allowed="absolute")
    hidden, wide, heads = (int(config[name]) for name in ("hidden_size", "intermediate_size", "num_attention_heads"))
    if hidden % 64 or wide % 64:
        raise _refusal("its panels are 64 columns wide", got=f"widths of {hidden} and {wide}", allowed="multiples of 64")
    if hidden // heads not in _HEAD_WIDTHS or hidden % heads:
        raise _refusal("its attention heads have other widths", got=f"{hidden} / {heads}", allowed="32 or 64")


def renumber_words(encoder: Encoder, new_ids: NDArray[np.int64]) -> Encoder:
    """Keep only some of an encoder's words.

    Args:
        encoder: Not changed.
        new_ids: Each old id's new one, -1 where it is gone: [old rows].

    Raises:
        InputError: Its vocabulary has another length, or the padding token, from whose id positions are counted, would move.
    """
    shape = encoder.shape
    if shape.vocabulary != len(new_ids):
        raise InputError("the encoder has another vocabulary", got=f"{shape.vocabulary} rows", allowed=f"{len(new_ids)}")
    if shape.padding_id >= 0 and new_ids[shape.padding_id] != shape.padding_id:
        raise InputError(
            "the native engine counts positions from the padding token's id, which would change",
            got=int(new_ids[shape.padding_id]),
            allowed=shape.padding_id,
        )
    kept = np.argsort(np.where(new_ids < 0, len(new_ids), new_ids), kind="stable")[: int((new_ids >= 0).sum())]
    tensors = {**encoder.tensors, **{name: encoder.tensors[name][kept] for name in ("words", "words.scale")}}
    return Encoder(shape=dataclasses.replace(shape, vocabulary=len(kept)), tensors=tensors)


def _refusal(reason: str, *, got: object, allowed: str) -> SourceError:
    return SourceError(
        f"the native engine cannot run this model: {reason}",
        got=str(got),
        allowed=allowed,
        fix="Leave int8_native out; the int8 variant runs everywhere.",
    )


class _Graph:
    """A recipe's graph, read part by part."""

    def __init__(self, recipe: DynamicRecipe) -> None:
        self._recipe = recipe
        self._nodes = list(recipe.model.graph.node)
        self._constants = {tensor.name: tensor for tensor in recipe.model.graph.initializer}
        self._producers = {output: node for node in self._nodes for output in node.output}
        self._readers: dict[str, list[NodeProto]] = {}
        for node in self._nodes:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)

    def read(self) -> dict[str, NDArray[Any]]:
        tensors: dict[str, NDArray[Any]] = {}
        gemms = [node for node in self._nodes if node.op_type == "Gemm"]
        if len(gemms) != 2 or not _is_tanh_between(gemms, self._producers, self._constants):
            raise _refusal("its head is a layer, tanh and another layer", got=f"{len(gemms)} layers", allowed="that")
        for node, name in zip(gemms, ("dense", "label"), strict=True):
            tensors |= self._head_layer(node, name)
        for node in self._nodes:
            output = node.output[0]
            if output.endswith(_EMBEDDING_NORM):
                tensors |= self._norm(node, "embedding_norm")
            elif node.op_type == "Gather" and (match := _TABLE.search(output)) and match[1] in _TABLES:
                tensors |= self._table(node, _TABLES[match[1]])
            elif match := _LAYER.search(output):
                prefix = f"layers.{match[1]}"
                if node.op_type == "MatMul" and match[2] in _LINEAR:
                    tensors |= self._linear(node, f"{prefix}.{_LINEAR[match[2]]}")
                elif node.op_type == "LayerNormalization" and match[2] in _NORM:
                    tensors |= self._norm(node, f"{prefix}.{_NORM[match[2]]}")
        if "segments" not in tensors and "words" in tensors:
            tensors["segments"] = np.zeros((1, tensors["words"].shape[1]), np.float32)
        self._check_shared_inputs(tensors)
        return tensors

    def _value(self, name: str) -> NDArray[Any]:
        value: NDArray[Any] = np.asarray(numpy_helper.to_array(self._constants[name]))
        return value

    def _head_layer(self, node: NodeProto, name: str) -> dict[str, NDArray[Any]]:
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        weight = self._value(node.input[1])
        return {
            f"{name}.weight": np.ascontiguousarray(weight.T if transposed else weight),
            f"{name}.bias": self._value(node.input[2]),
        }

    def _norm(self, node: NodeProto, name: str) -> dict[str, NDArray[Any]]:
        return {f"{name}.gain": self._value(node.input[1]), f"{name}.offset": self._value(node.input[2])}

    def _table(self, node: NodeProto, name: str) -> dict[str, NDArray[Any]]:
        table = self._value(node.input[0])
        if name != "words":
            return {name: table}
        rows, scales = quantize_columns(table.T)
        return {name: np.ascontiguousarray(rows.T), f"{name}.scale": scales}

    def _linear(self, node: NodeProto, name: str) -> dict[str, NDArray[Any]]:
        weight = self._value(node.input[1])
        levels = self._recipe.levels
        scales = column_scales(weight, levels)
        rounded = self._recipe.rounded.get(node.input[1])
        (addition,) = self._readers[node.output[0]]
        bias = next((value for value in addition.input if value in self._constants), None)
        if addition.op_type != "Add" or bias is None:
            raise _refusal("its linear layers have a bias", got=f"none for {name}", allowed="one")
        smoother = self._producers.get(node.input[0])
        smoothing = np.ones(len(weight), np.float32)
        if smoother is not None and smoother.op_type == "Mul" and smoother.input[1] in self._constants:
            factor = self._value(smoother.input[1])
            smoothing = factor if factor.shape == smoothing.shape else smoothing
        return {
            f"{name}.weight": round_to_nearest(weight, scales, levels) if rounded is None else rounded,
            f"{name}.scale": scales,
            f"{name}.bias": self._value(bias),
            f"{name}.smoothing": smoothing,
        }

    def _check_shared_inputs(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Query, key and value read one quantized input, but for the last layer's query, which reads the first row alone."""
        last = max((int(name.split(".")[1]) for name in tensors if name.startswith("layers.")), default=-1)
        for name, tensor in tensors.items():
            match = re.fullmatch(r"layers\.(\d+)\.(query|value)\.smoothing", name)
            if match is None or (match[2] == "query" and int(match[1]) == last):
                continue
            key = tensors.get(f"layers.{match[1]}.key.smoothing")
            if key is None or not np.array_equal(tensor, key):
                raise _refusal("query, key and value read one input", got=f"{name} differs", allowed="the key's")


def _is_tanh_between(gemms: list[NodeProto], producers: Mapping[str, NodeProto], constants: Mapping[str, object]) -> bool:
    before = producers.get(gemms[1].input[0])
    return (
        before is not None
        and before.op_type == "Tanh"
        and before.input[0] == gemms[0].output[0]
        and all(name in constants for gemm in gemms for name in gemm.input[1:])
    )
