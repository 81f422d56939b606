"""The files of a model folder that hold token ids: which ids they name, and the same files numbered anew."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from crossforge.export.reports import PAGE_NAME, REPORT_NAME
from crossforge.runtime.bundle import TOKENIZER_NAME

_CONFIG = "config.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"
_ADDED = "added_tokens.json"
_WITHOUT_IDS = frozenset({"special_tokens_map.json", "chat_template.jinja", REPORT_NAME, PAGE_NAME})
_ID_SUFFIX = "_token_id"


def find_named_ids(folder: Path) -> set[int]:
    """The ids that a model folder names outside ``tokenizer.json``; some may have no row in the embedding table."""
    tokenizer_config = _read(folder / _TOKENIZER_CONFIG)
    settings = {**_ids_by_key(_read(folder / _CONFIG)), **_ids_by_key(tokenizer_config)}
    configured = (id_ for ids in settings.values() for id_ in (ids if isinstance(ids, list) else [ids]))
    added = (int(id_) for id_ in tokenizer_config.get("added_tokens_decoder", {}))
    return {*configured, *added, *_read(folder / _ADDED).values()}


def write_renumbered_files(
    source: Path, names: Iterable[str], folder: Path, tokenizer_json: str, new_ids: NDArray[np.int64]
) -> list[str]:
    """Write the files of a model folder that go with a trimmed tokenizer.

    Args:
        source: The folder of the untrimmed model.
        names: Its files but the models', relative to it.
        folder: Where to write.
        tokenizer_json: The content of the trimmed ``tokenizer.json``.
        new_ids: Each old id's new one, -1 where it is gone: [old rows].

    Returns:
        The names that were left out, because nothing here knows how to number them anew (a sentencepiece model, say).
    """

    def new(id_: int) -> int:
        return int(new_ids[id_]) if 0 <= id_ < len(new_ids) else id_  # an id without a row named nothing before either

    vocabularies = _make_vocabularies(tokenizer_json)
    left_out = []
    for name in names:
        if name == TOKENIZER_NAME:
            content = tokenizer_json
        elif name in _WITHOUT_IDS:
            content = (source / name).read_text(encoding="utf-8")
        elif name in vocabularies:
            content = vocabularies[name]
        elif name in (_CONFIG, _TOKENIZER_CONFIG, _ADDED):
            document = _read(source / name)
            if name == _ADDED:
                document = {token: new(id_) for token, id_ in document.items()}
            document |= {
                key: [new(id_) for id_ in ids] if isinstance(ids, list) else new(ids)
                for key, ids in _ids_by_key(document).items()
            }
            if "vocab_size" in document:
                document["vocab_size"] = int((new_ids >= 0).sum())
            if "added_tokens_decoder" in document:
                decoder = document["added_tokens_decoder"]
                document["added_tokens_decoder"] = {str(new(int(id_))): token for id_, token in decoder.items()}
            content = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        else:
            left_out.append(name)
            continue
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    return left_out


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _ids_by_key(document: dict[str, Any]) -> dict[str, int | list[int]]:
    return {key: value for key, value in document.items() if key.endswith(_ID_SUFFIX) and isinstance(value, int | list)}


def _make_vocabularies(tokenizer_json: str) -> dict[str, str]:
    """The vocabulary as slow tokenizers read it (``vocab.txt``; ``vocab.json`` and ``merges.txt``), by file name."""
    with tempfile.TemporaryDirectory(prefix="crossforge-") as folder:
        paths = [Path(path) for path in Tokenizer.from_str(tokenizer_json).model.save(folder)]
        return {path.name: path.read_text(encoding="utf-8") for path in paths}
