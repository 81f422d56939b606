"""Small tokenizers, and graphs that look their ids up."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers

Array = NDArray[Any]
SAME = partial(np.testing.assert_allclose, rtol=0, atol=1e-6)
NONE = "ж"
"""A character that no tiny tokenizer knows."""


def lookup_model(rows: int, text: str = "e = Gather(table, input_ids)") -> ModelProto:
    """Looks ids up in a table, ``e``, and averages them; ``three`` is a constant."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (int64[b, s] input_ids) => (float[b, 8] y) {'
        f"three = Constant<value = int64[1] {{3}}>() {text} y = ReduceMean<axes = [1], keepdims = 0>(e) }}"
    )
    table = np.random.default_rng(0).normal(size=(rows, 8)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(table, "table"))
    return model


def serialize(model: Any, pre_tokenizer: Any = None, **parts: Any) -> str:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.WhitespaceSplit()
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return str(tokenizer.to_str())


def words(*tokens: str) -> str:
    """A tokenizer of one token a word."""
    return serialize(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))


def tokens_of(tokenizer_json: str, text: str) -> list[str]:
    return list(Tokenizer.from_str(tokenizer_json).encode(text, add_special_tokens=False).tokens)


def vocabulary_of(tokenizer_json: str) -> dict[str, int]:
    return dict(Tokenizer.from_str(tokenizer_json).get_vocab(with_added_tokens=True))


def table_of(model: ModelProto, name: str = "table") -> Array:
    return next(numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name == name)
