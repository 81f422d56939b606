"""The modules of a sentence-transformers folder: what a bi-encoder does after its transformer.

Read from the folder's JSON files and safetensors alone; sentence-transformers need not be installed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossforge.export.json_files import read_json, read_object_if_there
from crossforge.profiles import Embedding, Pooling, Similarity, SourceError

_TRANSFORMER_CONFIGS = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
"""Where versions of sentence-transformers wrote down the transformer's settings."""
_OLD_POOLING_NAMES = {
    "pooling_mode_cls_token": Pooling.CLS,
    "pooling_mode_max_tokens": Pooling.MAX,
    "pooling_mode_mean_tokens": Pooling.MEAN,
    "pooling_mode_mean_sqrt_len_tokens": Pooling.MEAN_SQRT_LEN,
    "pooling_mode_weightedmean_tokens": Pooling.WEIGHTED_MEAN,
    "pooling_mode_lasttoken": Pooling.LAST_TOKEN,
}
"""In the order in which sentence-transformers concatenates them."""
_AFTER_POOLING = ("Dense", "Normalize")


class DenseActivation(StrEnum):
    """The function after a dense layer, by the name of its class in torch."""

    IDENTITY = "Identity"
    TANH = "Tanh"
    RELU = "ReLU"
    SIGMOID = "Sigmoid"
    GELU = "GELU"


@dataclass(frozen=True, kw_only=True)
class DenseLayer:
    """A linear layer between pooling and normalization."""

    weight: NDArray[np.float32]
    """float32 [out, in]."""
    bias: NDArray[np.float32] | None
    """float32 [out]."""
    activation: DenseActivation

    def __str__(self) -> str:
        return f"{self.weight.shape[1]} to {self.weight.shape[0]}, {self.activation}"


@dataclass(frozen=True, kw_only=True)
class BiEncoder:
    """A bi-encoder, but for its transformer."""

    transformer: Path
    """The transformer's folder."""
    max_length: int | None
    """Tokens of a text, special tokens included; None where the folder does not say."""
    lower_case: bool
    """Whether texts are lowercased before the tokenizer's own normalization."""
    dense: tuple[DenseLayer, ...]
    embedding: Embedding


def is_bi_encoder(modules: object) -> bool:
    """Whether the content of a ``modules.json`` is that of a bi-encoder."""
    return isinstance(modules, list) and any("Pooling" in str(module.get("type")) for module in modules)


def read_bi_encoder(folder: Path, *, name: str, allow_pickle: bool = False) -> BiEncoder:
    """Read a folder with a ``modules.json``.

    Args:
        folder: The model's folder.
        name: What errors call it.
        allow_pickle: Read the weights of dense layers from pickles.

    Raises:
        SourceError: A module of it cannot be computed in the graph, or a file cannot be read.
    """
    modules = [(_kind(module, name), folder / str(module.get("path", ""))) for module in read_json(folder / "modules.json")]
    kinds = [kind for kind, _ in modules]
    after = kinds[2:]
    in_order = sorted(after, key=_AFTER_POOLING.index) == after if set(after) <= set(_AFTER_POOLING) else False
    if kinds[:2] != ["Transformer", "Pooling"] or not in_order or after.count("Normalize") > 1:
        raise SourceError(
            f"{name} is a bi-encoder of modules that crossforge does not know how to put into a graph",
            got=", ".join(kinds),
            allowed="Transformer, Pooling, any number of Dense, and Normalize, in this order",
        )
    transformer = modules[0][1]
    settings: Mapping[str, Any] = next(
        (read_json(path) for path in (transformer / file for file in _TRANSFORMER_CONFIGS) if path.is_file()), {}
    )
    pooling, width = _read_pooling(modules[1][1], name)
    dense = tuple(_read_dense(path, name, allow_pickle) for kind, path in modules if kind == "Dense")
    dimension = width * len(pooling)
    for layer in dense:
        if layer.weight.shape[1] != dimension:
            raise SourceError(f"a dense layer of {name} takes another width", got=layer.weight.shape[1], allowed=dimension)
        dimension = len(layer.weight)
    facts = read_object_if_there(folder / "config_sentence_transformers.json")
    length = settings.get("max_seq_length")
    return BiEncoder(
        transformer=transformer,
        max_length=None if length is None else int(length),
        lower_case=bool(settings.get("do_lower_case", False)),
        dense=dense,
        embedding=Embedding(
            dimension=dimension,
            pooling=pooling,
            dense=tuple(str(layer) for layer in dense),
            normalize="Normalize" in kinds,
            similarity=_read_similarity(facts, name),
            prompts={str(key): str(text or "") for key, text in (facts.get("prompts") or {}).items()},
            default_prompt=facts.get("default_prompt_name"),
        ),
    )


def _kind(module: Mapping[str, Any], name: str) -> str:
    kind = str(module.get("type"))
    package, _, last = kind.rpartition(".")
    if package.partition(".")[0] != "sentence_transformers":
        raise SourceError(f"{name} has a module of its own making", got=kind, allowed="the modules of sentence_transformers")
    return last


def _read_pooling(folder: Path, name: str) -> tuple[tuple[Pooling, ...], int]:
    """The modes, and the width of a token's vector."""
    config = read_json(folder / "config.json")
    if config.get("include_prompt", True) is not True:
        raise SourceError(
            f"{name} leaves the tokens of a prompt out of its pooling, which the graph cannot know of",
            got="include_prompt false",
            allowed="include_prompt true",
        )
    named = config.get("pooling_mode")
    if named is None:
        modes: Sequence[Any] = [mode for key, mode in _OLD_POOLING_NAMES.items() if config.get(key)] or [Pooling.MEAN]
    else:
        modes = [named] if isinstance(named, str) else list(named)
    try:
        pooling = tuple(Pooling(mode) for mode in modes)
    except ValueError:
        raise SourceError(f"{name} pools in an unknown way", got=named, allowed=", ".join(Pooling)) from None
    width = config.get("embedding_dimension", config.get("word_embedding_dimension"))
    if not isinstance(width, int):
        raise SourceError(f"the pooling of {name} does not say how wide a token's vector is", got=width)
    return pooling, width


def _read_dense(folder: Path, name: str, allow_pickle: bool) -> DenseLayer:
    config = read_json(folder / "config.json")
    for key in ("module_input_name", "module_output_name"):
        if config.get(key) not in (None, "sentence_embedding"):
            raise SourceError(
                f"a dense layer of {name} works on something else", got=config[key], allowed="sentence_embedding"
            )
    named = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    try:
        activation = DenseActivation(named.rpartition(".")[2])
        if not named.startswith("torch."):
            raise ValueError(named)
    except ValueError:
        allowed = ", ".join(f"torch's {known}" for known in DenseActivation)
        raise SourceError(f"a dense layer of {name} has an unknown activation", got=named, allowed=allowed) from None
    tensors = _read_tensors(folder, name, allow_pickle)
    try:
        weight, bias = tensors["linear.weight"], tensors.get("linear.bias")
    except KeyError:
        raise SourceError(
            f"a dense layer of {name} has no weights", got=", ".join(tensors), allowed="linear.weight"
        ) from None
    return DenseLayer(weight=weight, bias=bias, activation=activation)


def _read_tensors(folder: Path, name: str, allow_pickle: bool) -> dict[str, NDArray[np.float32]]:
    if (folder / "model.safetensors").is_file():
        from safetensors.torch import load_file

        tensors = load_file(folder / "model.safetensors")
    elif (folder / "pytorch_model.bin").is_file() and allow_pickle:
        import torch

        tensors = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    else:
        raise SourceError(
            f"a dense layer of {name} has no weights that may be read",
            got=", ".join(sorted(path.name for path in folder.glob("*"))) or "an empty folder",
            allowed="model.safetensors",
            fix="If you trust its pickle, add --allow-pickle.",
        )
    return {key: tensor.float().numpy() for key, tensor in tensors.items()}


def _read_similarity(facts: Mapping[str, Any], name: str) -> Similarity:
    named = facts.get("similarity_fn_name") or Similarity.COSINE  # what sentence-transformers takes where none is named
    try:
        return Similarity(named)
    except ValueError:
        raise SourceError(f"{name} compares in an unknown way", got=named, allowed=", ".join(Similarity)) from None
