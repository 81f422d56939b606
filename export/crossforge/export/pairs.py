"""Query-passage pairs that come with the package: to compare rankings on, and to show."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import resources

from crossforge.runtime.records import QueryRecord, read_run


def builtin_pairs() -> list[QueryRecord]:
    """24 queries with 10 passages each: many domains, several languages, lengths from a line to a page."""
    return _read("pairs.jsonl")


def berlin() -> QueryRecord:
    """The demonstration: "How many people live in Berlin?" with 14 passages, four of which tell something about it."""
    return _read("berlin.jsonl")[0]


def digest_pairs(records: Sequence[QueryRecord]) -> str:
    """SHA-256 of the texts, in order."""
    digest = hashlib.sha256()
    for record in records:
        for text in (record.query, *(passage.text for passage in record.passages)):
            digest.update(text.encode() + b"\0")
    return digest.hexdigest()


def flatten(records: Sequence[QueryRecord]) -> list[tuple[str, str]]:
    """All (query, passage) pairs, in order."""
    return [(record.query, passage.text) for record in records for passage in record.passages]


def _read(name: str) -> list[QueryRecord]:
    with resources.as_file(resources.files("crossforge.export") / "data" / name) as path:
        return read_run(path)
