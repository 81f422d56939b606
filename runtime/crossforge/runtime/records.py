"""Reading queries, passages and pairs from files, with the line named in every complaint."""

from __future__ import annotations

import json
import sys
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

from crossforge.profiles import InputError

STDIN = "-"


@dataclass(frozen=True, kw_only=True)
class Passage:
    """A text and its id."""

    id: str
    text: str


@dataclass(frozen=True, kw_only=True)
class QueryRecord:
    """A query with its candidate passages, best first-stage rank first."""

    qid: str
    query: str
    passages: tuple[Passage, ...]


def read_run(path: str | Path) -> list[QueryRecord]:
    """Read a run: JSON lines of ``{"qid", "query", "passages": [{"id", "text"}]}``.

    Raises:
        InputError: The file cannot be read, holds no query, repeats an id, or a line is not such an object.
    """
    records: list[QueryRecord] = []
    seen: set[str] = set()
    for where, value in _json_lines(path):
        qid, query = _text(value, "qid", where), _text(value, "query", where)
        items = value.get("passages")
        if not isinstance(items, list):
            raise InputError(f"{where}: 'passages' is not a list", allowed='[{"id", "text"}, ...]')
        passages = []
        for i, item in enumerate(items):
            here = f"{where}, passage {i}"
            if not isinstance(item, dict):
                raise InputError(f"{here}: not an object", got=f"{item!r:.60}", allowed='{"id", "text"}')
            passages.append(Passage(id=_text(item, "id", here), text=_text(item, "text", here)))
        if qid in seen:
            raise InputError(f"{where}: the query id {qid!r} comes a second time")
        if len({passage.id for passage in passages}) != len(passages):
            raise InputError(f"{where}: two passages of query {qid!r} share an id")
        seen.add(qid)
        records.append(QueryRecord(qid=qid, query=query, passages=tuple(passages)))
    if not records:
        raise InputError(f"{path} holds no query", allowed='one JSON object a line: {"qid", "query", "passages"}')
    return records


def read_pairs(path: str | Path) -> list[tuple[str, str]]:
    """Read pairs: JSON lines of ``{"query", "passage"}``; ``text`` is taken for ``passage``.

    Raises:
        InputError: The file cannot be read, or a line is not such an object.
    """
    return [(_text(value, "query", where), _text(value, passage_key(value), where)) for where, value in _json_lines(path)]


def parse_pair(raw: bytes, where: str) -> tuple[str, str, dict[str, object]] | None:
    """Read one line of a file of pairs, for whoever streams it.

    Args:
        raw: The line, with or without its end.
        where: The words that say where it stands.

    Returns:
        The query, the passage, and the line's other fields; None if the line is blank.

    Raises:
        InputError: As :func:`read_pairs`.
    """
    line = _decode(raw, where)
    if not line:
        return None
    value = _parse_object(line, where)
    key = passage_key(value)
    query, passage = _text(value, "query", where), _text(value, key, where)
    return query, passage, {name: item for name, item in value.items() if name not in ("query", key)}


def passage_key(names: Container[str]) -> str:
    """What a record of a pair calls its passage: ``text`` is taken for ``passage``."""
    return "text" if "text" in names and "passage" not in names else "passage"


def read_passages(path: str | Path) -> list[Passage]:
    """Read passages: a text a line, or, if the name ends in ``.jsonl``, a JSON string or ``{"id"?, "text"}`` a line.

    A passage without an id gets its number among the passages, from 0. ``-`` is standard input, with a text a line;
    blank lines are skipped.

    Raises:
        InputError: The file cannot be read, or a line is neither.
    """
    passages: list[Passage] = []
    as_json = str(path).endswith(".jsonl")
    for where, line in _lines(path):
        number = str(len(passages))
        if not as_json:
            passages.append(Passage(id=number, text=line))
            continue
        value = _parse(line, where)
        if isinstance(value, str):
            passages.append(Passage(id=number, text=value))
        elif isinstance(value, dict):
            id_ = _text(value, "id", where) if "id" in value else number
            passages.append(Passage(id=id_, text=_text(value, "text", where)))
        else:
            raise InputError(f"{where}: not a passage", got=f"{line:.60}", allowed='a string or {"id", "text"}')
    return passages


def _json_lines(path: str | Path) -> Iterator[tuple[str, dict[str, object]]]:
    for where, line in _lines(path):
        yield where, _parse_object(line, where)


def _parse_object(line: str, where: str) -> dict[str, object]:
    value = _parse(line, where)
    if not isinstance(value, dict):
        raise InputError(f"{where}: not an object", got=f"{line:.60}", allowed="one JSON object a line")
    return value


def _parse(line: str, where: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({error})") from error


def _lines(path: str | Path) -> Iterator[tuple[str, str]]:
    """Each line that is not blank, with the words that say where it stands."""
    name = "standard input" if str(path) == STDIN else str(path)
    try:
        content = sys.stdin.buffer.read() if str(path) == STDIN else Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {name} ({error.strerror or error})") from error
    for number, raw in enumerate(content.split(b"\n"), start=1):
        where = f"{name}, line {number}"
        if line := _decode(raw, where):
            yield where, line


def _decode(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8").removeprefix("\ufeff").strip()
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8", got=f"byte 0x{raw[error.start]:02x} at column {error.start + 1}") from error


def _text(value: dict[str, object], key: str, where: str) -> str:
    if key not in value:
        raise InputError(f"{where}: {key!r} is missing", got=f"the keys {', '.join(value) or 'none'}")
    text = value[key]
    if not isinstance(text, str):
        raise InputError(f"{where}: {key!r} is not a string", got=f"{type(text).__name__} {text!r:.60}", allowed="str")
    return text
