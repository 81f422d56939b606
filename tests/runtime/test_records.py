from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crossforge.profiles import InputError
from crossforge.runtime.records import Passage, QueryRecord, read_pairs, read_passages, read_run

BOM = b"\xef\xbb\xbf"
RUN_LINE = '{"qid": "1", "query": "wo?", "passages": [{"id": "a", "text": "Größe"}, {"id": "b", "text": ""}]}'
PAIR_LINE = '{"query": "q", "passage": "p"}'
READERS: list[tuple[Callable[[Path], Any], str]] = [
    (read_run, RUN_LINE),
    (read_pairs, PAIR_LINE),
    (read_passages, '{"id": "a", "text": "t"}'),
]


def write(folder: Path, content: str | bytes, name: str = "records.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_a_run_is_read(tmp_path: Path) -> None:
    expected = QueryRecord(qid="1", query="wo?", passages=(Passage(id="a", text="Größe"), Passage(id="b", text="")))

    assert read_run(write(tmp_path, RUN_LINE)) == [expected]


def test_pairs_are_read_under_either_name_of_the_passage(tmp_path: Path) -> None:
    lines = ['{"query": "q", "passage": "p", "text": "x"}', '{"query": "r", "text": "t"}']

    assert read_pairs(write(tmp_path, "\n".join(lines))) == [("q", "p"), ("r", "t")]


def test_passages_are_lines_of_text(tmp_path: Path) -> None:
    path = write(tmp_path, 'first\n\n{"text": "not JSON here"}\n', "passages.txt")

    assert read_passages(path) == [Passage(id="0", text="first"), Passage(id="1", text='{"text": "not JSON here"}')]


def test_passages_are_strings_or_objects_in_json_lines(tmp_path: Path) -> None:
    path = write(tmp_path, '"first"\n{"text": "second"}\n{"id": "x", "text": "third"}\n')

    assert read_passages(path) == [
        Passage(id="0", text="first"),
        Passage(id="1", text="second"),
        Passage(id="x", text="third"),
    ]


@pytest.mark.parametrize(("read", "line"), READERS)
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"", b"\n"),
        (b"\n  \n\t\n", b"\n\n"),
        (BOM, b""),
        (b"\r\n", b"\r\n"),
        pytest.param(
            BOM + b"\n",
            b"",
        ),
    ],
)
def test_blank_lines_carriage_returns_and_a_bom_are_skipped(
    tmp_path: Path, read: Callable[[Path], Any], line: str, before: bytes, after: bytes
) -> None:
    plain, padded = write(tmp_path, line, "plain.jsonl"), write(tmp_path, before + line.encode() + after, "padded.jsonl")

    assert read(padded) == read(plain)


@pytest.mark.parametrize(("read", "line"), READERS)
@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (b"{", "line 3: not JSON"),
        (b"[1]", "line 3: not "),
        (b"7", "line 3: not "),
        (b"[" * 100_000, "line 3: not JSON"),
        (b'{"query": 7, "qid": 7, "text": 7}', "is not a string; got int 7; allowed: str"),
        (b"{}", "is missing; got the keys none"),
        (b'{"quer\xe9": 1}', "line 3: not UTF-8; got byte 0xe9 at column 7"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, read: Callable[[Path], Any], line: str, broken: bytes, message: str) -> None:
    path = write(tmp_path, line.encode() + b"\n\n" + broken + b"\n")

    with pytest.raises(InputError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}, line 3: ")
    assert message in str(caught.value)


def run_line(**fields: Any) -> str:
    return json.dumps({"qid": "2", "query": "q", "passages": []} | fields)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (run_line(qid="1"), "line 2: the query id '1' comes a second time"),
        (run_line(passages=None), 'line 2: \'passages\' is not a list; allowed: [{"id", "text"}, ...]'),
        (run_line(passages=["text"]), "line 2, passage 0: not an object; got 'text'"),
        (
            run_line(passages=[{"id": "a", "text": "t"}, {"id": "b"}]),
            "line 2, passage 1: 'text' is missing; got the keys id",
        ),
        (run_line(passages=[{"id": 3, "text": "t"}]), "line 2, passage 0: 'id' is not a string; got int 3"),
        (run_line(passages=[{"id": "a", "text": "t"}] * 2), "line 2: two passages of query '2' share an id"),
        ('{"qid": "2", "passages": []}', "line 2: 'query' is missing; got the keys qid, passages"),
    ],
)
def test_a_run_that_contradicts_itself_is_refused(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path, f"{RUN_LINE}\n{line}")

    with pytest.raises(InputError) as caught:
        read_run(path)
    assert str(caught.value).startswith(f"{path}, {message}")


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_a_run_without_a_query_is_refused_and_other_files_are_empty(tmp_path: Path, content: str) -> None:
    path = write(tmp_path, content)

    assert read_pairs(path) == []
    assert read_passages(path) == []
    with pytest.raises(InputError, match="holds no query; allowed: one JSON object a line"):
        read_run(path)


@pytest.mark.parametrize(("read", "line"), READERS)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, read: Callable[[Path], Any], line: str) -> None:  # noqa: ARG001
    for path, reason in [(tmp_path / "absent.jsonl", "No such file"), (tmp_path, "Is a directory")]:
        with pytest.raises(InputError) as caught:
            read(path)
        assert str(caught.value).startswith(f"cannot read {path} ({reason}")


class Stdin:
    def __init__(self, content: bytes) -> None:
        self.buffer = io.BytesIO(content)


def test_a_dash_is_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(BOM + "erste\r\n\nzweite Größe".encode()))
    assert read_passages("-") == [Passage(id="0", text="erste"), Passage(id="1", text="zweite Größe")]

    monkeypatch.setattr(sys, "stdin", Stdin(PAIR_LINE.encode()))
    assert read_pairs("-") == [("q", "p")]


def test_a_broken_line_of_standard_input_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(b"fine\nnot \xff fine"))

    with pytest.raises(InputError, match=r"^standard input, line 2: not UTF-8; got byte 0xff at column 5$"):
        read_passages("-")
