"""The folder of a job: what it is made of, which shards are done, and who is at work on it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crossforge.profiles import InputError
from crossforge.runtime.distributed.shards import ShardTable

_IDENTITY = "job.json"
_TABLE = "shards.npy"
_LOCK = "lock"
_PART = "part-"
_UNFINISHED = ".tmp-"


@dataclass(frozen=True, kw_only=True)
class JobFolder:
    """A folder that every worker reaches. A part stands in it whole or not at all."""

    path: Path
    suffix: str
    """Of the parts: the format's."""

    def part(self, shard: int) -> Path:
        """Where the scores of a shard are, once it is finished."""
        return self.path / f"{_PART}{shard:09d}{self.suffix}"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder, and keep other runs out of it until the block or the process ends.

        Raises:
            InputError: Another run is at work in it, or it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = (self.path / _LOCK).open("w")
        except OSError as error:
            raise InputError(f"cannot write to {self.path} ({error.strerror or error})") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(f"another run is at work in {self.path}", fix="Wait for its end, or stop it.") from error
            yield

    def begin(self, identity: Mapping[str, object], table: ShardTable) -> None:
        """Write down what the job is made of; or, if that was done before, compare.

        Raises:
            InputError: The folder is of another job; the message names what differs.
        """
        path = self.path / _IDENTITY
        if path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            if differing := [name for name in {**before, **identity} if before.get(name) != identity.get(name)]:
                raise InputError(
                    f"{self.path} was begun with another {' and another '.join(differing)}",
                    got="; ".join(f"{name} {identity.get(name)}" for name in differing),
                    allowed="; ".join(f"{name} {before.get(name)}" for name in differing),
                    fix="Run it as it was begun, or delete the folder to begin anew.",
                )
            for left in self.path.glob(f"*{_UNFINISHED}*"):
                left.unlink(missing_ok=True)
            return
        table.save(self.path / _TABLE)
        with unfinished(path) as writing:
            writing.write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")

    def table(self) -> ShardTable:
        """The shards of the job."""
        return ShardTable.load(self.path / _TABLE)

    def pending(self, shards: int) -> NDArray[np.int64]:
        """The shards that have no part yet, in order."""
        missing = np.ones(shards, dtype=bool)
        with os.scandir(self.path) as entries:
            for entry in entries:
                if entry.name.startswith(_PART) and entry.name.endswith(self.suffix) and _UNFINISHED not in entry.name:
                    missing[int(entry.name[len(_PART) : -len(self.suffix)])] = False
        return np.flatnonzero(missing)

    def journal(self) -> Path:
        """A new file for a worker to write down what it scores."""
        return self.path / f"journal-{uuid.uuid4().hex}.jsonl"

    def remove(self) -> None:
        """Delete it, with the parts."""
        shutil.rmtree(self.path, ignore_errors=True)


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """A name to write under; at the end of the block the file is on the disk, under the name that it was meant for."""
    writing = path.with_name(f"{path.name}{_UNFINISHED}{uuid.uuid4().hex}")
    try:
        yield writing
        with writing.open("rb") as file:
            os.fsync(file.fileno())
        writing.rename(path)
    finally:
        writing.unlink(missing_ok=True)
