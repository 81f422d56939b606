from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from crossforge.profiles import (
    MANIFEST_NAME,
    BundleError,
    BundleNotFoundError,
    FileRecord,
    IntegrityError,
    ManifestError,
    Precision,
    SchemaVersionError,
)
from crossforge.runtime.bundle import Bundle, record_file, sha256_of
from support.builders import make_manifest, read_manifest, write_bundle, write_manifest

ONNX = "onnx/model.onnx"


def edit_json(folder: Path, **fields: Any) -> None:
    path = folder / MANIFEST_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def record_under(folder: Path, name: str) -> None:
    """Let the manifest record a file of any name."""
    files = json.loads((folder / MANIFEST_NAME).read_text())["files"]
    edit_json(folder, files=files | {name: {"sha256": "0" * 64, "size_bytes": 1}})


def test_an_open_bundle_holds_its_manifest(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "bundle")

    assert Bundle.open(str(folder)) == Bundle(folder, read_manifest(folder))


def test_opening_touches_no_file_but_the_manifest(tmp_path: Path) -> None:
    write_manifest(tmp_path, make_manifest())

    assert Bundle.open(tmp_path).manifest.architecture == "TinyForSequenceClassification"


def test_an_unharmed_bundle_passes(tmp_path: Path) -> None:
    bundle = Bundle.open(write_bundle(tmp_path, external_data=True))

    bundle.check(bundle.manifest.files)
    assert [bundle.find_damage(name) for name in bundle.manifest.files] == [None] * 3


def test_where_there_is_no_bundle_one_is_told_how_to_make_one(tmp_path: Path) -> None:
    absent, file = tmp_path / "absent", tmp_path / "file"
    file.write_text("{}")
    words = {
        absent: f"there is no bundle at {absent}. Make one: crossforge export SOURCE {absent}",
        file: f"{file} is a file, and a bundle is a folder. Name the folder.",  # over which nothing can be exported
    }
    for path, message in words.items():
        with pytest.raises(BundleNotFoundError) as caught:
            Bundle.open(path)
        assert str(caught.value) == message


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError, match=r"is not a bundle: it has no crossforge\.json\. Make one: "):
        Bundle.open(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"", b"\xff", b"[]", b'{"schema_version": 1}'])
def test_a_broken_manifest_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST_NAME).write_bytes(content)

    with pytest.raises(ManifestError) as caught:
        Bundle.open(tmp_path)
    assert str(tmp_path / MANIFEST_NAME) in str(caught.value)


def test_a_manifest_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_NAME).mkdir()

    with pytest.raises(ManifestError, match=f"cannot read {tmp_path / MANIFEST_NAME}"):
        Bundle.open(tmp_path)


@pytest.mark.parametrize(
    ("fields", "kind", "message"),
    [
        ({"schema_version": 2}, SchemaVersionError, "newer crossforge; got schema_version 2; allowed: up to 1"),
        ({"pad_token_id": "0"}, ManifestError, "$.pad_token_id: expected int, got str"),
        ({"colour": "red"}, ManifestError, "$: unknown field 'colour'"),
        ({"files": {}}, ManifestError, "$: variant fp32 names onnx/model.onnx, which files does not record"),
    ],
)
def test_a_manifest_that_cannot_be_acted_on_is_refused(
    tmp_path: Path, fields: dict[str, Any], kind: type[ManifestError], message: str
) -> None:
    edit_json(write_bundle(tmp_path), **fields)

    with pytest.raises(kind) as caught:
        Bundle.open(tmp_path)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "onnx/../../secret"])
def test_a_file_outside_the_bundle_is_refused(tmp_path: Path, name: str) -> None:
    record_under(write_bundle(tmp_path), name)

    with pytest.raises(ManifestError) as caught:
        Bundle.open(tmp_path)
    assert str(caught.value).endswith(f"names a file outside the bundle; got {name!r}")


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (Path.unlink, "is missing"),
        (flip_a_byte, "was altered (its sha256 differs from the manifest's)"),
        (truncate, " bytes, the manifest says "),
    ],
)
@pytest.mark.parametrize("name", [ONNX, "tokenizer.json"])
def test_a_damaged_file_is_named_with_its_damage(tmp_path: Path, name: str, harm: Any, problem: str) -> None:
    bundle = Bundle.open(write_bundle(tmp_path))
    harm(tmp_path / name)

    with pytest.raises(IntegrityError) as caught:
        bundle.check(bundle.manifest.files)
    message = str(caught.value)
    assert message.startswith(f"the bundle {tmp_path} is damaged: {name} ")
    assert problem in message
    assert message.endswith("Copy or export it again; `crossforge verify` lists every file.")


def test_a_file_that_cannot_be_read_is_damage(tmp_path: Path) -> None:
    bundle = Bundle.open(write_bundle(tmp_path))
    (tmp_path / ONNX).unlink()
    (tmp_path / ONNX).symlink_to(tmp_path / ONNX)

    assert str(bundle.find_damage(ONNX)).startswith(f"{ONNX} cannot be read (")


def test_a_file_that_the_manifest_does_not_record_is_damage(tmp_path: Path) -> None:
    bundle = Bundle.open(write_bundle(tmp_path))
    (tmp_path / "extra.bin").write_bytes(b"x")

    assert bundle.find_damage("extra.bin") == "extra.bin is not recorded in the manifest"


@pytest.mark.parametrize("name", ["a\x00b", "a\ud800b"])
def test_a_file_name_that_no_file_system_has_is_refused(tmp_path: Path, name: str) -> None:
    record_under(write_bundle(tmp_path), name)

    with pytest.raises(BundleError):
        Bundle.open(tmp_path).check([name])


def test_a_path_that_no_file_system_has_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError):
        Bundle.open(tmp_path / ("x" * 300))


def test_a_variant_needs_the_tokenizer_and_its_own_files(tmp_path: Path) -> None:
    bundle = Bundle.open(write_bundle(tmp_path, precisions=(Precision.FP32, Precision.INT8), external_data=True))

    assert bundle.files_to_run(Precision.INT8) == (
        "tokenizer.json",
        "onnx/model_int8.onnx",
        "onnx/model_int8.onnx_data",
    )
    assert bundle.size_bytes(Precision.INT8) == sum(
        (tmp_path / f"onnx/model_int8.{suffix}").stat().st_size for suffix in ("onnx", "onnx_data")
    )


def test_a_file_is_recorded_by_digest_and_size(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"crossforge")

    assert sha256_of(path) == hashlib.sha256(b"crossforge").hexdigest()
    assert record_file(path) == FileRecord(sha256=hashlib.sha256(b"crossforge").hexdigest(), size_bytes=10)
