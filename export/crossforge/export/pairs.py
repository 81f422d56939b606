"""Query-passage pairs that come with the package: to compare rankings on, and to show."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

from crossforge.profiles import InputError
from crossforge.runtime.records import QueryRecord, read_run


def builtin_pairs() -> list[QueryRecord]:
    """24 queries with 10 passages each: many domains, several languages, lengths from a line to a page."""
    return _read("pairs.jsonl")


def verification_pairs() -> list[QueryRecord]:
    """The half that verdicts rest on: 12 queries, each with its own 10 passages and the 10 of another query.

    The other passages make the ten best a choice among twenty. The remaining half is left for calibration, so that what
    a variant is tuned on never judges it.
    """
    half = builtin_pairs()[::2]
    return [
        replace(record, passages=record.passages + other.passages)
        for record, other in zip(half, [*half[1:], half[0]], strict=True)
    ]


def calibration_pairs() -> list[QueryRecord]:
    """The half that may be tuned on; shares no text with :func:`verification_pairs`."""
    return builtin_pairs()[1::2]


def read_verification(path: str | Path | None, *, calibration: Sequence[QueryRecord] = ()) -> list[QueryRecord]:
    """Read the pairs that verdicts rest on, in the run format; None gives the built-in ones.

    Args:
        path: The file.
        calibration: What variants are tuned on, which must not judge them too.

    Raises:
        InputError: The file cannot be read, no query has two passages, or a pair is among the calibration pairs.
    """
    records = verification_pairs() if path is None else read_run(path)
    if all(len(record.passages) < 2 for record in records):
        raise InputError(
            f"{path} orders nothing", got="no query with two passages", allowed="queries with several passages each"
        )
    if shared := set(flatten(records)) & set(flatten(calibration)):
        raise InputError(
            "verification pairs must be held out from calibration",
            got=f"{len(shared)} pairs in both, such as {min(shared)[0]!r:.60}",
            fix="Split the file by queries.",
        )
    return records


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
