"""Pairs in JSON lines: a shard is a range of bytes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from crossforge.profiles import InputError
from crossforge.runtime.activation import Floats
from crossforge.runtime.distributed.formats import RESERVED, SCORE, TRUNCATED, Rows, damaged
from crossforge.runtime.distributed.shards import Mark, Shard
from crossforge.runtime.records import parse_pair

MOST_LINE_BYTES = 64 * 2**20
"""A line that is longer is refused before it is read whole."""
_CHUNK_BYTES = 2**20


class JsonLines:
    """One JSON object a line, with ``query`` and ``passage`` (or ``text``)."""

    def scan(self, path: Path) -> Iterator[Mark]:
        """See :meth:`RecordFormat.scan`."""
        start = number = 0
        with path.open("rb") as file:
            while raw := file.readline(MOST_LINE_BYTES + 1):
                number += 1
                where = f"{path}, line {number}"
                if len(raw) > MOST_LINE_BYTES:
                    raise InputError(f"{where}: too long", got=f"more than {MOST_LINE_BYTES:,} bytes")
                stop = start + len(raw)
                if (pair := parse_pair(raw, where)) is not None:
                    query, _, carried = pair
                    if taken := [name for name in RESERVED if name in carried]:
                        raise InputError(f"{where}: the output adds a field {taken[0]!r}", fix="Rename the input's.")
                    yield Mark(query=query, size_bytes=len(raw), start=start, stop=stop, number=number)
                start = stop

    def read(self, path: Path, shard: Shard) -> Rows:
        """See :meth:`RecordFormat.read`."""
        with path.open("rb") as file:
            file.seek(shard.start)
            content = file.read(shard.stop - shard.start)
        parsed = [parse_pair(raw, f"{path}, from line {shard.first} on") for raw in content.split(b"\n")]
        records = [record for record in parsed if record is not None]
        return Rows(
            pairs=[(query, passage) for query, passage, _ in records], carried=[carried for _, _, carried in records]
        )

    def write(self, path: Path, rows: Rows, scores: Floats, truncated: NDArray[np.bool_]) -> None:
        """See :meth:`RecordFormat.write`. A score has the fewest digits that read back as the same float32."""
        carried = cast(list[dict[str, object]], rows.carried)
        with path.open("w", encoding="utf-8", newline="\n") as file:
            for fields, score, cut in zip(carried, scores, truncated.tolist(), strict=True):
                record = {**fields, SCORE: float(str(score)), TRUNCATED: cut}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def merge(self, parts: Iterable[tuple[Path, int]], target: Path) -> None:
        """See :meth:`RecordFormat.merge`."""
        with target.open("wb") as merged:
            for path, pairs in parts:
                lines = 0
                with path.open("rb") as part:
                    while chunk := part.read(_CHUNK_BYTES):
                        lines += chunk.count(b"\n")
                        merged.write(chunk)
                if lines != pairs:
                    raise damaged(path, lines, pairs)
