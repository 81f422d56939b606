"""Files of pairs: what is read, and what is refused with its line."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest

from crossforge.profiles import InputError
from crossforge.runtime.pairs.labels import survey_labels
from crossforge.runtime.pairs.options import LabelKind, PairFormat, Quoting
from crossforge.runtime.pairs.records import TextPair, open_pairs

Read = list[tuple[str, str, float | None]]


def read(path: Path | str, **said: object) -> Read:
    with open_pairs(path, PairFormat(**said)) as pairs:  # type: ignore[arg-type]
        first = list(pairs)
        assert list(pairs) == first, "a file can be read again"
    return [(pair.text1, pair.text2, pair.label) for pair in first]


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", '{"text1": "a b", "text2": "c", "label": 1}\n\n{"text1": "d", "text2": "e"}\n'),
        ("a.jsonl", '\ufeff{"sentence1": "a b", "sentence2": "c", "score": "1.0"}\r\n{"sentence1": "d", "sentence2": "e"}'),
        ("a.json", '{"query": "a b", "passage": "c", "label": true}\n{"query": "d", "passage": "e", "label": null}\n'),
        ("a.csv", 'id,question1,question2,is_duplicate\n7,"a b",c,1\n8,d,e,\n'),
        ("a.CSV", "text1,text2,label\r\na b,c,1\r\n\r\nd,e, \r\n"),
        ("a.tsv", "\ufeffsplit\tscore\tsentence1\tsentence2\ntest\t1\ta b\tc\ntest\t\td\te\n"),
    ],
)
def test_pairs_are_read_however_they_come(tmp_path: Path, name: str, text: str) -> None:
    assert read(write(tmp_path, name, text)) == [("a b", "c", 1.0), ("d", "e", None)]


def test_quotes_of_a_csv_are_its_own_and_those_of_a_tsv_the_texts(tmp_path: Path) -> None:
    csv = write(tmp_path, "a.csv", 'text1,text2\n"one, ""two""\nand three",four\n')
    assert read(csv) == [('one, "two"\nand three', "four", None)]
    tsv = write(tmp_path, "a.tsv", 'text1\ttext2\n"Hello, he said.\tShe said "no".\n')
    assert read(tsv) == [('"Hello, he said.', 'She said "no".', None)]
    quora = write(tmp_path, "b.tsv", 'text1\ttext2\n"one ""two"""\tthree\n')
    assert read(quora, quoting=Quoting.MINIMAL) == [('one "two"', "three", None)]
    assert read(quora, quoting=Quoting.NONE) == [('"one ""two"""', "three", None)]
    with pytest.raises(InputError, match=r"line 2: the quotes around 'text1' look like.*--quoting minimal"):
        read(quora)


def test_a_column_of_labels_can_be_named(tmp_path: Path) -> None:
    row = {"text1": "a", "text2": "b", "label": 1, "similarity": 4.5}
    path = write(tmp_path, "a.jsonl", json.dumps(row))
    assert read(path) == [("a", "b", 1.0)]
    assert read(path, label_column="similarity") == [("a", "b", 4.5)]


def test_standard_input_and_pipes_can_be_read_twice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = b'{"text1": "a", "text2": "b"}\n'
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
    assert read("-") == [("a", "b", None)]
    reading, writing = os.pipe()
    os.write(writing, text)
    os.close(writing)
    assert read(f"/dev/fd/{reading}") == [("a", "b", None)]
    os.close(reading)
    with pytest.raises(InputError, match="cannot read"):
        read(tmp_path / "missing.jsonl")
    with pytest.raises(InputError, match="cannot read"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"text1": "a", "text2": "b"}\n[1]', "line 2: not an object"),
        ("a.jsonl", "text1,text2\n", r"line 1: not JSON.*\.csv or \.tsv"),
        ("a.jsonl", '{"text1": "a", "passage": "b"}', "line 1: no pair of texts; got text1, passage; allowed: text1, text2"),
        ("a.jsonl", '{"text1": "a", "text2": "b", "query": "a", "passage": "b"}', "line 1: no pair of texts"),
        ("a.jsonl", '{"text1": "a", "text2": 3}', "line 1: 'text2' is not a text; got 3"),
        ("a.jsonl", '{"text1": " ", "text2": "b"}', "line 1: 'text1' is not a text"),
        ("a.jsonl", '{"text1": "a", "text2": "\\ud800"}', "line 1: 'text2' is not valid Unicode"),
        ("a.csv", "text1,text2\na," + "b" * 131_073, "line 2: not a row .field larger than field limit.*as JSON lines"),
        ("a.jsonl", '{"text1": "a", "text2": "' + "b" * 500_001 + '"}', "line 1: 'text2' is too long"),
        ("a.jsonl", '{"text1": "a", "text2": "b", "label": "yes"}', "line 1: 'label' is not a number; got 'yes'"),
        ("a.jsonl", '{"text1": "a", "text2": "b", "label": NaN}', "line 1: 'label' is not a number"),
        ("a.jsonl", '{"text1": "a", "text2": "b", "label": [1]}', "line 1: 'label' is not a number"),
        ("a.jsonl", '{"text1": "a", "text2": "b", "label": 1, "score": 2}', "line 1: several labels; got label, score"),
        ("a.csv", "text1,text2\na,b\na,b,c\n", r"line 3: the row does not fit the header; got 3 fields; allowed: 2"),
        ("a.csv", 'text1,text2\n"a"x,b\n', "line 2: not a row.*--quoting none"),
        ("a.csv", 'text1,text2\na,"b\nc', "line 3: not a row"),
        ("a.csv", "a,b\n1,2\n", "line 1: no pair of texts; got a, b"),
        ("a.csv", "text1,text1,text2\n1,2,3\n", "line 1: no pair of texts"),
        ("a.tsv", "text1\ttext2\na\n", "line 2: the row does not fit the header.*--quoting minimal"),
    ],
)
def test_what_is_no_pair_is_refused_with_its_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(write(tmp_path, name, text))


def test_text_that_is_not_utf8_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"text1,text2\na,b\n\xff,b\n")
    with pytest.raises(InputError, match="line 3: not UTF-8; got byte 0xff at column 1"):
        read(path)


def labelled(*labels: float | None) -> list[TextPair]:
    return [TextPair(line=i, text1="a", text2="b", label=label) for i, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("labels", "kind", "words"),
    [
        ((0, 1, 1), LabelKind.BINARY, "binary, every one is 0 or 1"),
        (
            (0, 1, None),
            LabelKind.BINARY,
            "every one is 0 or 1; 1 of 3 pairs have none and are left out of the figures",
        ),
        ((0, 0.5, 1), LabelKind.GRADED, "graded, 0 to 1"),
        ((None, None), None, "none"),
    ],
)
def test_labels_are_binary_if_every_one_is_0_or_1(
    labels: tuple[float | None, ...], kind: LabelKind | None, words: str
) -> None:
    found = survey_labels(labelled(*labels))
    assert found.kind is kind
    assert words in found.describe()


def test_what_labels_are_can_be_said() -> None:
    assert survey_labels(labelled(0, 1), LabelKind.GRADED).kind is LabelKind.GRADED
    ignored = survey_labels(labelled(1, 1), LabelKind.IGNORE)
    assert ignored.kind is None
    assert np.isnan(ignored.values).all()
    with pytest.raises(InputError, match=r"not binary; got 0\.5"):
        survey_labels(labelled(0, 0.5), LabelKind.BINARY)
    with pytest.raises(InputError, match=r"tell nothing apart; got 1 for all of 2.*--labels ignore"):
        survey_labels(labelled(1, 1))
    with pytest.raises(InputError, match="no pair"):
        survey_labels([])
