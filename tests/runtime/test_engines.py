from __future__ import annotations

from pathlib import Path

import pytest

from crossforge.profiles import EngineRecord, IntegrityError, ManifestError
from crossforge.runtime.bundle import Bundle
from crossforge.runtime.engines import read_engines
from support.builders import make_engine_record, make_engine_spec, record_again, write_bundle


def add(bundle: Path, record: EngineRecord) -> Path:
    path = bundle / record.spec.record_path
    path.parent.mkdir(exist_ok=True)
    path.write_text(record.to_json(), encoding="utf-8")
    record_again(bundle, record.spec.record_path)
    return path


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path)


def test_a_bundle_may_have_no_engine(bundle: Path) -> None:
    assert read_engines(Bundle.open(bundle)) == ()


def test_engines_are_read_by_target(bundle: Path) -> None:
    records = [make_engine_record(make_engine_spec(targets=(target,))) for target in ("sm89", "sm86")]
    for record in records:
        add(bundle, record)
    assert read_engines(Bundle.open(bundle)) == tuple(reversed(records))


def test_only_what_the_manifest_names_is_read(bundle: Path) -> None:
    record = make_engine_record()
    stray = bundle / record.spec.record_path
    stray.parent.mkdir()
    stray.write_text(record.to_json(), encoding="utf-8")
    (bundle / "reports").mkdir()
    (bundle / "reports" / "parity.json").write_text("{}")
    record_again(bundle, "reports/parity.json")
    assert read_engines(Bundle.open(bundle)) == ()


def test_a_missing_sidecar_says_what_to_do(bundle: Path) -> None:
    add(bundle, make_engine_record()).unlink()
    with pytest.raises(IntegrityError, match="crossforge build"):
        read_engines(Bundle.open(bundle))


def test_a_sidecar_that_cannot_be_understood_is_named(bundle: Path) -> None:
    add(bundle, make_engine_record()).write_text("{")
    with pytest.raises(ManifestError, match=r"tensorrt/\w+\.json is not JSON"):
        read_engines(Bundle.open(bundle))
