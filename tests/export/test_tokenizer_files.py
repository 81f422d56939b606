"""Files beside ``tokenizer.json``: every id in them is the new one, and slow tokenizers read them too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from crossforge.export.passes.vocabulary import TrimmableTokenizer, find_used
from crossforge.export.tokenizer_files import find_named_ids, write_renumbered_files
from crossforge.runtime.bundle import TOKENIZER_NAME
from support.tiny_models import ARCHITECTURES, VOCABULARY

TEXTS = ["How long does a blue whale live?", "Water boils at 100 degrees Celsius."]


def trim_files(source: Path, folder: Path) -> tuple[NDArray[np.int64], list[str]]:
    """Trim a tokenizer's files to ``TEXTS``, with the ids that they name."""
    text = (source / TOKENIZER_NAME).read_text(encoding="utf-8")
    tokenizer = TrimmableTokenizer(text)
    named = {id_ for id_ in find_named_ids(source) if id_ < VOCABULARY}
    used = np.isin(np.arange(VOCABULARY), list(find_used(tokenizer, TEXTS, named)))
    new_ids = np.where(used, np.cumsum(used) - 1, -1)
    folder.mkdir()
    names = [path.name for path in source.iterdir()]
    return new_ids, write_renumbered_files(source, names, folder, tokenizer.renumbered(new_ids), new_ids)


def write_json(path: Path, document: object) -> None:
    path.write_text(json.dumps(document), encoding="utf-8")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("family", "fast", "vocabulary"),
    [
        ("bert", True, {"vocab.txt"}),
        ("bert", False, {"vocab.txt"}),
        ("roberta", True, {"vocab.json", "merges.txt"}),
        ("roberta", False, {"vocab.json", "merges.txt"}),
        ("deberta-v2", True, set()),  # the slow one needs a sentencepiece model
        ("modernbert", True, set()),
    ],
)
def test_tokenizers_of_transformers_read_the_files(tmp_path: Path, family: str, fast: bool, vocabulary: set[str]) -> None:
    source = tmp_path / "source"
    ARCHITECTURES[family].make_tokenizer().save_pretrained(source)
    _, left_out = trim_files(source, tmp_path / "trimmed")
    assert not left_out
    assert {path.name for path in (tmp_path / "trimmed").iterdir()} == {path.name for path in source.iterdir()} >= vocabulary
    ours = Tokenizer.from_file(str(tmp_path / "trimmed" / TOKENIZER_NAME))
    theirs = AutoTokenizer.from_pretrained(tmp_path / "trimmed", use_fast=fast)
    for pair in (TEXTS, ["blue whale", "100 degrees"]):
        assert theirs(*pair)["input_ids"] == ours.encode(*pair).ids
    assert theirs.convert_ids_to_tokens(theirs.all_special_ids) == theirs.all_special_tokens


def test_every_named_id_is_the_new_one(tmp_path: Path) -> None:
    source = tmp_path / "source"
    ARCHITECTURES["bert"].make_tokenizer().save_pretrained(source)
    config = {
        "vocab_size": VOCABULARY,
        "pad_token_id": 0,
        "sep_token_id": 3,
        "eos_token_id": [3, 399],
        "bos_token_id": None,
        "decoder_start_token_id": 1_000_000,
        "hidden_size": 32,
    }
    write_json(source / "config.json", config)
    write_json(source / "added_tokens.json", {"[EXTRA]": 398})

    assert {0, 3, 398, 399, 1_000_000} <= find_named_ids(source)
    new_ids, _ = trim_files(source, tmp_path / "trimmed")

    assert new_ids[399] not in (-1, 399)
    assert read_json(tmp_path / "trimmed" / "config.json") == {
        **config,
        "vocab_size": int((new_ids >= 0).sum()),
        "eos_token_id": [3, int(new_ids[399])],
    }
    assert read_json(tmp_path / "trimmed" / "added_tokens.json") == {"[EXTRA]": int(new_ids[398])}
    decoder = read_json(tmp_path / "trimmed" / "tokenizer_config.json")["added_tokens_decoder"]
    vocabulary = Tokenizer.from_file(str(tmp_path / "trimmed" / TOKENIZER_NAME)).get_vocab()
    assert {token["content"]: int(id_) for id_, token in decoder.items()}.items() <= vocabulary.items()


def test_files_that_nothing_is_known_of_are_left_out(tmp_path: Path) -> None:
    source = tmp_path / "source"
    ARCHITECTURES["bert"].make_tokenizer().save_pretrained(source)
    (source / "spm.model").write_bytes(b"\x0a\xff")
    _, left_out = trim_files(source, tmp_path / "trimmed")
    assert left_out == ["spm.model"]
    assert not (tmp_path / "trimmed" / "spm.model").exists()
