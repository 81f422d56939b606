"""Tiny bi-encoders with random weights, saved in the layout of sentence-transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModel

from crossforge.profiles import Pooling
from support.tiny_models import edit_json, save_tiny_model

WIDTH = 32
"""Of a token's vector."""
MAX_LENGTH = 24
"""Tokens of a text that every tiny bi-encoder reads."""
TEXTS = (
    "Berlin has a population of 3,520,031 registered inhabitants.",
    "How many people live in the capital of Germany?",
    "",
    "bees",
    "The kettle boils water in less than three minutes. Solar panels turn sunlight into electricity without moving parts. "
    "The train to Hamburg leaves from platform seven at noon.",
    "bees",
    "Oranges and lemons are rich in vitamin C.",
)
"""One is empty, one is too long, one is there twice."""


def save_bi_encoder(
    folder: Path,
    *,
    architecture: str = "bert",
    pooling: str | Sequence[str] = Pooling.MEAN,
    dense: Mapping[int, str] | None = None,
    normalize: bool = True,
    seed: int = 0,
    **facts: Any,
) -> Path:
    """Save a bi-encoder.

    Args:
        folder: Where to; is made.
        architecture: A key of :data:`support.tiny_models.ARCHITECTURES`.
        pooling: One mode, or several.
        dense: The width of each layer after pooling, with torch's name of its activation.
        normalize: Whether there is a module that normalizes.
        seed: Of the weights.
        **facts: The content of ``config_sentence_transformers.json``.

    Returns:
        ``folder``.
    """
    save_tiny_model(folder, architecture, seed=seed)
    encoder = AutoModel.from_pretrained(folder)
    for stale in folder.glob("*.safetensors"):
        stale.unlink()
    encoder.save_pretrained(folder)  # without the classification head
    kinds = ["Transformer", "Pooling", *("Dense" for _ in dense or ()), *(["Normalize"] if normalize else [])]
    paths = [f"{i}_{kind}" if i else "" for i, kind in enumerate(kinds)]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": MAX_LENGTH, "do_lower_case": False}))
    (folder / "config_sentence_transformers.json").write_text(json.dumps(facts))
    modes = [pooling] if isinstance(pooling, str) else list(pooling)
    for path in paths[1:]:
        (folder / path).mkdir()
    _write(folder / paths[1], embedding_dimension=WIDTH, pooling_mode=modes[0] if len(modes) == 1 else modes)
    width = WIDTH * len(modes)
    for i, (out, activation) in enumerate((dense or {}).items()):
        place = folder / paths[2 + i]
        name = f"torch.nn.modules.{'linear' if activation == 'Identity' else 'activation'}.{activation}"
        _write(place, in_features=width, out_features=out, bias=True, activation_function=name)
        generator = torch.Generator().manual_seed(seed + i)
        weights = {"linear.weight": torch.randn(out, width, generator=generator) / 4, "linear.bias": torch.randn(out)}
        save_file(weights, place / "model.safetensors")
        width = out
    return folder


def edit_modules(folder: Path, *kinds: str) -> None:
    """Name other modules, from the first on."""
    path = folder / "modules.json"
    modules = json.loads(path.read_text())
    for module, kind in zip(modules, kinds, strict=False):
        module["type"] = kind
    path.write_text(json.dumps(modules))


def _write(folder: Path, **config: Any) -> None:
    (folder / "config.json").write_text("{}")
    edit_json(folder / "config.json", **config)
