"""Files of pairs of texts: JSON lines, or a table as Quora's and the STS benchmark's; read line by line."""

from __future__ import annotations

import csv
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from crossforge.profiles import InputError
from crossforge.runtime.inputs import check_text
from crossforge.runtime.pairs.options import PairFormat, Quoting
from crossforge.runtime.records import STDIN

TEXT_COLUMNS = (("text1", "text2"), ("sentence1", "sentence2"), ("question1", "question2"), ("query", "passage"))
LABEL_COLUMNS = ("label", "score", "is_duplicate")
_ALLOWED_TEXTS = " or ".join(f"{first}, {second}" for first, second in TEXT_COLUMNS)


@dataclass(frozen=True, kw_only=True)
class TextPair:
    """Two texts of equal standing."""

    line: int
    """Where it ends in its file, from 1."""
    text1: str
    text2: str
    label: float | None
    """None where the file does not judge it."""


@dataclass(frozen=True, kw_only=True)
class PairFile:
    """A file of pairs that can be read more than once."""

    name: str
    """What errors call it."""
    path: Path
    suffix: str
    format: PairFormat

    def __iter__(self) -> Iterator[TextPair]:
        """Read it from the start.

        Raises:
            InputError: A line is not a pair; says which.
        """
        try:
            with self.path.open("rb") as stream:
                if self.suffix in _DELIMITERS:
                    yield from _read_table(self, stream)
                else:
                    yield from _read_json_lines(self, stream)
        except OSError as error:
            raise InputError(f"cannot read {self.name} ({error.strerror or error})") from error


@contextmanager
def open_pairs(path: str | Path, pair_format: PairFormat | None = None) -> Iterator[PairFile]:
    """Open a file of pairs; standard input and pipes, which are read once, are kept on disk meanwhile.

    A name that ends in ``.csv`` is a table of commas, ``.tsv`` one of tabs, both with a header; everything else is JSON
    lines.

    Args:
        path: The file; ``-`` is standard input.
        pair_format: How to read it.

    Raises:
        InputError: There is no such file.
    """
    pair_format = pair_format or PairFormat()
    name, suffix = ("standard input", "") if str(path) == STDIN else (str(path), Path(path).suffix.lower())
    if str(path) != STDIN and Path(path).is_file():
        yield PairFile(name=name, path=Path(path), suffix=suffix, format=pair_format)
        return
    with tempfile.NamedTemporaryFile(prefix="crossforge-pairs-") as kept:
        try:
            if str(path) == STDIN:
                shutil.copyfileobj(sys.stdin.buffer, kept)
            else:
                with Path(path).open("rb") as stream:
                    shutil.copyfileobj(stream, kept)
        except OSError as error:
            raise InputError(f"cannot read {name} ({error.strerror or error})") from error
        kept.flush()
        yield PairFile(name=name, path=Path(kept.name), suffix=suffix, format=pair_format)


def _read_json_lines(file: PairFile, stream: BinaryIO) -> Iterator[TextPair]:
    for number, line in enumerate(_decoded(file, stream), start=1):
        if not line.strip():
            continue
        where = f"{file.name}, line {number}"
        try:
            value = json.loads(line.strip())
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{where}: not JSON ({error})", fix="A table needs a name that ends in .csv or .tsv."
            ) from error
        if not isinstance(value, dict):
            raise InputError(f"{where}: not an object", got=f"{line.strip():.60}", allowed='{"text1", "text2", "label"}')
        texts, label = _find_columns(list(value), file.format, where)
        yield _make_pair(
            number, where, [(name, value[name]) for name in texts], None if label is None else (label, value.get(label))
        )


def _read_table(file: PairFile, stream: BinaryIO) -> Iterator[TextPair]:
    delimiter, usual = _DELIMITERS[file.suffix]
    quoting = file.format.quoting or usual
    reader = csv.reader(
        _decoded(file, stream),
        delimiter=delimiter,
        quoting=csv.QUOTE_NONE if quoting is Quoting.NONE else csv.QUOTE_MINIMAL,
        strict=True,
    )
    header: list[str] = []
    texts: tuple[str, str] = ("", "")
    label: str | None = None
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            # The csv module's limit is one of the process; a text that long is better off without a table.
            fix = "Write such texts as JSON lines." if "field limit" in str(error) else _other_quoting(quoting)
            raise InputError(f"{file.name}, line {reader.line_num}: not a row ({error})", fix=fix) from error
        if row is None:
            break
        where = f"{file.name}, line {reader.line_num}"
        if not row:
            continue
        if not header:
            header = [name.strip() for name in row]
            texts, label = _find_columns(header, file.format, where)
            continue
        if len(row) != len(header):
            raise InputError(
                f"{where}: the row does not fit the header",
                got=f"{len(row)} fields",
                allowed=f"{len(header)} ({', '.join(header)})",
                fix=_other_quoting(quoting),
            )
        fields = dict(zip(header, row, strict=True))
        for name in texts:
            _refuse_doubtful_quotes(fields[name], name, where, file.format.quoting, quoting)
        yield _make_pair(
            reader.line_num,
            where,
            [(name, fields[name]) for name in texts],
            None if label is None else (label, fields[label].strip() or None),
        )


def _refuse_doubtful_quotes(text: str, name: str, where: str, asked: Quoting | None, quoting: Quoting) -> None:
    if asked is None and quoting is Quoting.NONE and len(text) > 1 and text[0] == text[-1] == '"' and '""' in text[1:-1]:
        raise InputError(
            f"{where}: the quotes around {name!r} look like the file format's",
            got=f"{text:.60}",
            fix="Say --quoting minimal if they are, and --quoting none if they are the text's.",
        )


def _decoded(file: PairFile, stream: BinaryIO) -> Iterator[str]:
    for number, raw in enumerate(stream, start=1):
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{file.name}, line {number}: not UTF-8", got=f"byte 0x{raw[error.start]:02x} at column {error.start + 1}"
            ) from error
        yield line.removeprefix("\ufeff") if number == 1 else line


def _find_columns(names: Sequence[str], pair_format: PairFormat, where: str) -> tuple[tuple[str, str], str | None]:
    """The two text columns and, if there is one, the label's."""
    texts = [columns for columns in TEXT_COLUMNS if set(columns) <= set(names)]
    if len(texts) != 1 or len(set(names)) < len(names):
        raise InputError(f"{where}: no pair of texts", got=", ".join(names) or "nothing", allowed=_ALLOWED_TEXTS)
    if pair_format.label_column is not None:
        # Not every line of JSON needs one; in a table the header decides.
        return texts[0], pair_format.label_column if pair_format.label_column in names else None
    labels = [name for name in LABEL_COLUMNS if name in names]
    if len(labels) > 1:
        raise InputError(f"{where}: several labels", got=", ".join(labels), allowed="one", fix="Say which: --label-column.")
    return texts[0], labels[0] if labels else None


def _make_pair(line: int, where: str, texts: Sequence[tuple[str, object]], label: tuple[str, object] | None) -> TextPair:
    for name, text in texts:
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{where}: {name!r} is not a text", got=f"{text!r:.60}", allowed="a string that is not blank")
        check_text(text, f"{where}: {name!r}")
    first, second = (str(text) for _, text in texts)
    return TextPair(line=line, text1=first, text2=second, label=None if label is None else _read_label(*label, where))


def _read_label(name: str, value: object, where: str) -> float | None:
    if value is None:
        return None
    try:
        number = float(value) if isinstance(value, str | int | float) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{where}: {name!r} is not a number", got=f"{value!r:.60}", allowed="a finite number, or nothing")
    return number


def _other_quoting(quoting: Quoting) -> str:
    other = Quoting.NONE if quoting is Quoting.MINIMAL else Quoting.MINIMAL
    return f"Quotes were read as {quoting}; --quoting {other} reads them the other way."


_DELIMITERS = {".csv": (",", Quoting.MINIMAL), ".tsv": ("\t", Quoting.NONE)}
"""What separates fields, and how quotes are usual."""
