"""Writing a bundle so that a kill at any moment leaves the old one or none, never half of one."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from crossforge.profiles import MANIFEST_NAME, FileRecord, InputError
from crossforge.runtime.bundle import record_file
from crossforge.runtime.hub import is_snapshot


@contextmanager
def staged_bundle(target: str | Path) -> Iterator[Path]:
    """Give a fresh folder to write a bundle into; see :func:`staged_folder`.

    Raises:
        InputError: Something that is not a bundle stands at ``target``, or its parent cannot be written to.
    """
    with staged_folder(target, refuse_other_content) as staging:
        yield staging


@contextmanager
def staged_folder(target: str | Path, refuse: Callable[[Path], None]) -> Iterator[Path]:
    """Give a fresh folder to write into, and put it at ``target`` when the block ends without an error.

    The folder lies beside ``target``, so that putting it there is a rename. An old one at ``target`` is moved aside
    first and deleted last; leftovers of killed exports are removed by the next one.

    Args:
        target: Where the folder goes.
        refuse: Raises if what stands at ``target`` must not be replaced; asked before the block and after it.

    Raises:
        InputError: ``refuse`` said so, or the target's parent cannot be written to.
    """
    target = Path(target).resolve()  # a link stays, and what it points to is replaced
    refuse(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target)
        staging = _beside(target, "new")
        staging.mkdir()
    except OSError as error:
        raise InputError(f"cannot write to {target.parent} ({error.strerror or error})") from error
    try:
        yield staging
        refuse(target)  # writing took a while, in which something may have come there
        _put_in_place(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def refuse_other_content(target: Path) -> None:
    """Make sure that writing a bundle to ``target`` would replace a bundle or nothing.

    Raises:
        InputError: It would replace something else, or lies in the hub's cache.
    """
    if is_snapshot(target):
        raise InputError(f"{target} lies in the hub's cache, which other programs read", allowed="a folder of your own")
    replaceable = not target.exists() or (
        target.is_dir() and ((target / MANIFEST_NAME).is_file() or not any(target.iterdir()))
    )
    if not replaceable:
        raise InputError(
            f"{target} exists and is not a bundle", allowed="a new path, an empty folder, or a bundle to replace"
        )


def record_files(folder: Path) -> dict[str, FileRecord]:
    """Size and digest of every file below a folder but the manifest, by relative path."""
    return {
        path.relative_to(folder).as_posix(): record_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST_NAME
    }


def _put_in_place(staging: Path, target: Path) -> None:
    if not target.exists():
        staging.rename(target)
        return
    aside = _beside(target, "old")
    target.rename(aside)
    try:
        staging.rename(target)
    except OSError:
        aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _beside(target: Path, role: str) -> Path:
    return target.with_name(f".{target.name}.{role}-{os.getpid()}")


def _remove_leftovers(target: Path) -> None:
    """Remove what exports to this target left behind whose process is gone.

    An old bundle moved aside by an export that was killed between its two renames is put back.
    """
    for leftover in target.parent.glob(f".{glob.escape(target.name)}.*-*"):
        prefix, _, process = leftover.name.rpartition("-")
        if not process.isdigit() or (int(process) != os.getpid() and _is_alive(int(process))):
            continue
        if prefix == f".{target.name}.old" and not target.exists():
            leftover.rename(target)
        elif prefix in (f".{target.name}.old", f".{target.name}.new"):
            shutil.rmtree(leftover, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
