"""Writing a bundle: killed at any moment, there is the old one, the new one or none, never half of one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from crossforge.export.bundle import record_files, refuse_other_content, staged_bundle
from crossforge.profiles import MANIFEST_NAME, FileRecord, InputError

KILL_EXPORTS = Path(__file__).with_name("kill_exports.py")


def write_bundle(target: Path, content: str) -> None:
    with staged_bundle(target) as folder:
        (folder / "onnx").mkdir()
        (folder / "onnx" / "model.onnx").write_text(content)
        (folder / MANIFEST_NAME).write_text(content)


def bundle_at(target: Path) -> str | None:
    """What a complete bundle holds; None where nothing stands."""
    if not target.exists():
        return None
    contents = {path.relative_to(target).as_posix(): path.read_text() for path in target.rglob("*") if path.is_file()}
    assert contents.keys() == {"onnx/model.onnx", MANIFEST_NAME}
    assert len(set(contents.values())) == 1, "parts of two bundles"
    return contents[MANIFEST_NAME]


def kill_exports(root: Path, name: str, *, old: str | None) -> list[Path]:
    """The targets of exports that were killed, one after each change to the file system; the last one lived."""
    if old is not None:
        write_bundle(root / "old", old)
    subprocess.run([sys.executable, KILL_EXPORTS, root, name], check=True)
    targets = [folder / name for folder in sorted((root / "deaths").iterdir())]
    assert len(targets) > 5
    return targets


# Writing


def test_a_bundle_is_put_in_place_when_it_is_complete(tmp_path: Path) -> None:
    with staged_bundle(tmp_path / "bundle") as folder:
        (folder / MANIFEST_NAME).write_text("new")
        assert folder.parent == tmp_path
        assert not (tmp_path / "bundle").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert (tmp_path / "bundle" / MANIFEST_NAME).read_text() == "new"


def test_missing_parents_are_made(tmp_path: Path) -> None:
    write_bundle(tmp_path / "a" / "b" / "bundle", "new")
    assert bundle_at(tmp_path / "a" / "b" / "bundle") == "new"


def test_a_bundle_replaces_an_old_one(tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle", "old")
    write_bundle(tmp_path / "bundle", "new")
    assert bundle_at(tmp_path / "bundle") == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_bundle_takes_the_place_of_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    write_bundle(tmp_path / "bundle", "new")
    assert bundle_at(tmp_path / "bundle") == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_link_to_a_bundle_stays_a_link(tmp_path: Path) -> None:
    write_bundle(tmp_path / "v1" / "bundle", "old")
    (tmp_path / "current").symlink_to(tmp_path / "v1" / "bundle")
    write_bundle(tmp_path / "current", "new")
    assert (tmp_path / "current").is_symlink()
    assert bundle_at(tmp_path / "v1" / "bundle") == "new"
    assert sorted(path.name for path in tmp_path.rglob("*bundle*")) == ["bundle"]


def test_a_relative_path_is_taken_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with staged_bundle("bundle") as folder:
        (folder / MANIFEST_NAME).write_text("new")
    assert (tmp_path / "bundle" / MANIFEST_NAME).read_text() == "new"


def write_half_a_bundle(target: Path, error: type[BaseException]) -> None:
    with staged_bundle(target) as folder:
        (folder / MANIFEST_NAME).write_text("new")
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("old", ["old", None])
def test_an_error_while_writing_leaves_what_was_there(tmp_path: Path, error: type[BaseException], old: str | None) -> None:
    if old is not None:
        write_bundle(tmp_path / "bundle", old)
    with pytest.raises(error):
        write_half_a_bundle(tmp_path / "bundle", error)
    assert bundle_at(tmp_path / "bundle") == old
    assert [path.name for path in tmp_path.iterdir()] == ([] if old is None else ["bundle"])


# Being killed


def test_a_first_export_that_is_killed_leaves_a_bundle_or_nothing(tmp_path: Path) -> None:
    *killed, lived = kill_exports(tmp_path, "bundle", old=None)
    found = [bundle_at(target) for target in killed]
    assert found == sorted(found, key=lambda content: content == "new")  # nothing, and from some moment on the bundle
    assert found[0] is None
    assert bundle_at(lived) == "new"


def test_an_export_that_is_killed_leaves_the_old_bundle_or_the_new_one(tmp_path: Path) -> None:
    *killed, lived = kill_exports(tmp_path, "bundle", old="old")
    found = [bundle_at(target) for target in killed]
    assert found[0] == "old"
    assert found[-1] == "new"
    assert found.count(None) == 1  # between the two renames; the next export puts the old one back
    assert bundle_at(lived) == "new"


@pytest.mark.parametrize("name", ["bundle", "bundle [v1]*", "bundle.v1-2"])
def test_the_next_export_puts_back_what_was_moved_aside_and_clears_the_rest(tmp_path: Path, name: str) -> None:
    targets = kill_exports(tmp_path, name, old="old")
    assert max(len(list(target.parent.iterdir())) for target in targets) > 1
    for target in targets:
        stood = bundle_at(target) or "old"
        with pytest.raises(RuntimeError, match="too late"), staged_bundle(target):
            raise RuntimeError("too late")
        assert bundle_at(target) == stood
        assert [path.name for path in target.parent.iterdir()] == [name]


def test_leftovers_of_other_targets_and_of_living_processes_stay(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as living:
        kept = {f".bundle.new-{living.pid}", ".other.new-999999999", ".bundle.v2.new-999999999", ".bundle.notes-999999999"}
        for name in kept:
            (tmp_path / name).mkdir()
        write_bundle(tmp_path / "bundle", "new")
        assert {path.name for path in tmp_path.iterdir()} == {"bundle", *kept}
        living.kill()


# Refusing


def test_a_folder_with_other_content_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="exists and is not a bundle"), staged_bundle(tmp_path / "bundle"):
        pytest.fail("the block must not run")
    assert (tmp_path / "bundle" / "thesis.tex").read_text() == "years of work"


def test_a_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "bundle").write_text("a file")
    with pytest.raises(InputError, match="exists and is not a bundle"), staged_bundle(tmp_path / "bundle"):
        pytest.fail("the block must not run")
    assert (tmp_path / "bundle").read_text() == "a file"


def test_a_target_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    with pytest.raises(InputError, match="cannot write to"), staged_bundle(tmp_path / "file" / "bundle"):
        pytest.fail("the block must not run")


def test_what_came_to_the_target_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    writing = staged_bundle(tmp_path / "bundle")
    (writing.__enter__() / MANIFEST_NAME).write_text("new")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="exists and is not a bundle"):
        writing.__exit__(None, None, None)
    assert (tmp_path / "bundle" / "thesis.tex").read_text() == "years of work"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_nothing_an_empty_folder_and_a_bundle_may_be_replaced(tmp_path: Path) -> None:
    refuse_other_content(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    refuse_other_content(tmp_path / "empty")
    write_bundle(tmp_path / "bundle", "old")
    refuse_other_content(tmp_path / "bundle")
    with pytest.raises(InputError):
        refuse_other_content(tmp_path)


# Recording


def test_every_file_but_the_manifest_is_recorded(tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"abc")
    (tmp_path / MANIFEST_NAME).write_text("{}")
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert record_files(tmp_path) == {"onnx/model.onnx": FileRecord(sha256=abc, size_bytes=3)}
