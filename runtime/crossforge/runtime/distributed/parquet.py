"""Pairs in Parquet: a shard is a range of rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from crossforge.profiles import InputError, MissingPackageError
from crossforge.runtime.activation import Floats
from crossforge.runtime.distributed.formats import RESERVED, SCORE, TRUNCATED, Rows, damaged
from crossforge.runtime.distributed.shards import Mark, Shard
from crossforge.runtime.records import passage_key

_READ_ROWS = 1_024
_GROUP_ROWS = 65_536
"""Rows of the output's row groups, at least; made of whole parts, so that they are the same in every run."""


class Parquet:
    """Columns ``query`` and ``passage`` (or ``text``), of strings without nulls.

    Raises:
        MissingPackageError: pyarrow is not installed.
    """

    def __init__(self) -> None:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ModuleNotFoundError as error:
            raise MissingPackageError("pyarrow", extra="ray", purpose="Reading Parquet") from error
        self._pa: Any = pa
        self._pq: Any = pq

    def scan(self, path: Path) -> Iterator[Mark]:
        """See :meth:`RecordFormat.scan`."""
        with self._open(path) as file:
            query_name, passage_name = self._columns(path, file)
            row = 0
            for batch in file.iter_batches(batch_size=_READ_ROWS, columns=[query_name, passage_name]):
                queries, passages = batch.column(query_name).to_pylist(), batch.column(passage_name).to_pylist()
                for query, passage in zip(queries, passages, strict=True):
                    if query is None or passage is None:
                        name = query_name if query is None else passage_name
                        raise InputError(f"{path}, row {row}: {name!r} is null", allowed="str")
                    size_bytes = len(query) + len(passage)
                    yield Mark(query=query, size_bytes=size_bytes, start=row, stop=row + 1, number=row)
                    row += 1

    def read(self, path: Path, shard: Shard) -> Rows:
        """See :meth:`RecordFormat.read`. Holds one row group's columns, compressed, beside the shard."""
        with self._open(path) as file:
            table = self._rows(file, shard)
        texts = {name: table.column(name).to_pylist() for name in self._columns(path, table)}
        return Rows(pairs=list(zip(*texts.values(), strict=True)), carried=table.drop_columns(list(texts)))

    def write(self, path: Path, rows: Rows, scores: Floats, truncated: NDArray[np.bool_]) -> None:
        """See :meth:`RecordFormat.write`."""
        table = cast(Any, rows.carried)
        table = table.append_column(SCORE, self._pa.array(scores, self._pa.float32()))
        self._pq.write_table(table.append_column(TRUNCATED, self._pa.array(truncated)), path)

    def merge(self, parts: Iterable[tuple[Path, int]], target: Path) -> None:
        """See :meth:`RecordFormat.merge`."""
        writer, waiting, rows = None, [], 0
        try:
            for path, pairs in parts:
                with self._open(path) as part:
                    table = part.read()
                if len(table) != pairs:
                    raise damaged(path, len(table), pairs)
                writer = writer or self._pq.ParquetWriter(target, table.schema)
                waiting.append(table)
                rows += pairs
                if rows >= _GROUP_ROWS:
                    writer.write_table(self._pa.concat_tables(waiting), row_group_size=rows)
                    waiting, rows = [], 0
            if writer is not None and waiting:
                writer.write_table(self._pa.concat_tables(waiting), row_group_size=rows)
        finally:
            if writer is not None:
                writer.close()

    def _open(self, path: Path) -> Any:
        try:
            return self._pq.ParquetFile(path)
        except (OSError, self._pa.ArrowException) as error:
            raise InputError(f"cannot read {path} ({error})", allowed="a Parquet file") from error

    def _columns(self, path: Path, table: Any) -> tuple[str, str]:
        schema = table.schema_arrow if hasattr(table, "schema_arrow") else table.schema
        if taken := [name for name in RESERVED if name in schema.names]:
            raise InputError(f"{path}: the output adds a column {taken[0]!r}", fix="Rename the input's.")
        names = ("query", passage_key(schema.names))
        for name in names:
            if name not in schema.names:
                raise InputError(f"{path}: {name!r} is missing", got=f"the columns {', '.join(schema.names) or 'none'}")
            kind = schema.field(name).type
            if not (self._pa.types.is_string(kind) or self._pa.types.is_large_string(kind)):
                raise InputError(f"{path}: {name!r} is not a column of strings", got=kind, allowed="string")
        return names

    def _rows(self, file: Any, shard: Shard) -> Any:
        """Rows ``start`` to ``stop``, from the row groups that hold them alone."""
        groups: list[int] = []
        before, end = 0, 0
        for group in range(file.num_row_groups):
            begin, end = end, end + file.metadata.row_group(group).num_rows
            if end > shard.start and begin < shard.stop:
                before = before if groups else begin
                groups.append(group)
        kept = []
        for batch in file.iter_batches(batch_size=_READ_ROWS, row_groups=groups):
            low, high = max(shard.start - before, 0), min(shard.stop - before, len(batch))
            if high > low:
                kept.append(batch.slice(low, high - low))
            before += len(batch)
            if before >= shard.stop:
                break
        return self._pa.Table.from_batches(kept, schema=file.schema_arrow)
