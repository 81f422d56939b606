"""Files of pairs, read and written a piece at a time: the seam between JSON lines and Parquet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from crossforge.profiles import InputError
from crossforge.runtime.activation import Floats
from crossforge.runtime.distributed.shards import Mark, Shard

SCORE = "score"
TRUNCATED = "truncated"
RESERVED = (SCORE, TRUNCATED)
"""What an output record gains; its input record must not have them."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The records of a shard."""

    pairs: list[tuple[str, str]]
    """(query, passage)."""
    carried: object
    """Their other fields, in the format's own form."""


class RecordFormat(Protocol):
    """One file format."""

    def scan(self, path: Path) -> Iterator[Mark]:
        """Check every record of a file, and say where each stands, in memory that does not grow with the file.

        Raises:
            InputError: A record is not a pair, or has a field that the output adds.
        """
        ...

    def read(self, path: Path, shard: Shard) -> Rows:
        """Read the records of one shard."""
        ...

    def write(self, path: Path, rows: Rows, scores: Floats, truncated: NDArray[np.bool_]) -> None:
        """Write the scores of one shard, each with its record's other fields."""
        ...

    def merge(self, parts: Iterable[tuple[Path, int]], target: Path) -> None:
        """Join parts, each with its number of records, into one file, in memory that does not grow with them.

        Raises:
            InputError: A part is not what was written.
        """
        ...


def format_of(path: Path) -> RecordFormat:
    """The format of a file, by its name.

    Raises:
        InputError: It is neither.
        MissingPackageError: It is Parquet, and pyarrow is not installed.
    """
    if path.suffix == ".jsonl":
        from crossforge.runtime.distributed.jsonl import JsonLines

        return JsonLines()
    if path.suffix == ".parquet":
        from crossforge.runtime.distributed.parquet import Parquet

        return Parquet()
    raise InputError("the format cannot be told from the name", got=path.name, allowed="a name in .jsonl or .parquet")


def find_files(path: Path) -> tuple[Path, ...]:
    """The files of an input: itself, or those of a folder in the order of their names.

    Raises:
        InputError: There is none, or a folder mixes formats.
    """
    if not path.is_dir():
        if not path.is_file():
            raise InputError(f"there is no file {path}", allowed="a .jsonl or .parquet file, or a folder of them")
        return (path.resolve(),)
    files = tuple(sorted(file.resolve() for file in path.iterdir() if file.suffix in (".jsonl", ".parquet")))
    if not files:
        raise InputError(f"the folder {path} holds no input", allowed=".jsonl or .parquet files")
    if len({file.suffix for file in files}) > 1:
        raise InputError(f"the folder {path} mixes formats", got=".jsonl and .parquet", allowed="one of the two")
    return files


def damaged(path: Path, got: int, pairs: int) -> InputError:
    """The complaint about a part that does not hold what was written."""
    return InputError(
        f"{path} is damaged", got=f"{got:,} records", allowed=f"{pairs:,}", fix="Delete it and run the same command again."
    )
