"""Engines in a bundle: recorded, found again, replaced, and never half written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from crossforge.export.bundle import record_files
from crossforge.export.tensorrt.compiler import CompiledEngine
from crossforge.export.tensorrt.store import find_engine, prune_engines, store_engine
from crossforge.profiles import (
    EngineRecord,
    EngineSpec,
    EngineTensor,
    InputError,
    IntegrityError,
    ManifestError,
    Precision,
)
from crossforge.runtime.bundle import Bundle
from crossforge.runtime.engines import read_engines
from support.builders import make_engine_spec, read_manifest, record_again, write_bundle, write_manifest
from support.mean_model import MeanModel

ROOT = Path(__file__).resolve().parents[2]
KILL_BUILDS = Path(__file__).with_name("kill_builds.py")
MODEL = "onnx/model_fp16.onnx"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle", precisions=(Precision.FP32, Precision.FP16))


def spec_for(bundle: Path, **overrides: object) -> EngineSpec:
    return make_engine_spec(model={MODEL: read_manifest(bundle).files[MODEL].sha256}, **overrides)


def store(bundle: Path, spec: EngineSpec, plan: bytes = b"an engine") -> EngineRecord:
    tensors = (EngineTensor(name="input_ids", dtype="int64", shape=(-1, -1)),)
    compiled = CompiledEngine(plan=memoryview(plan), inputs=tensors, outputs=())
    return store_engine(bundle, spec, compiled, build_seconds=1.234)


def record_all(bundle: Path) -> None:
    """Make the manifest name every file that is there, as quantize does."""
    write_manifest(bundle, replace(read_manifest(bundle), files=record_files(bundle)))


def check(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    opened.check(opened.manifest.files)


def test_a_stored_engine_is_found_and_verifies(bundle: Path) -> None:
    spec = spec_for(bundle)
    assert find_engine(bundle, spec) is None

    record = store(bundle, spec)

    assert find_engine(bundle, spec) == record
    assert read_engines(Bundle.open(bundle)) == (record,)
    assert (bundle / spec.path).read_bytes() == b"an engine"
    assert (bundle / spec.record_path).is_file()
    check(bundle)
    assert read_manifest(bundle).files == record_files(bundle)


def test_another_spec_is_another_engine(bundle: Path) -> None:
    one, other = spec_for(bundle), spec_for(bundle, targets=("sm89",))
    store(bundle, one, b"one")
    store(bundle, other, b"other")

    assert [record.spec.target for record in read_engines(Bundle.open(bundle))] == ["sm86", "sm89"]
    check(bundle)


def lose(path: Path) -> None:
    path.unlink()


def alter(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"?")


@pytest.mark.parametrize("harm", [lose, alter])
@pytest.mark.parametrize("name", ["path", "record_path"])
def test_a_damaged_engine_is_not_found_and_is_mended(bundle: Path, harm: Callable[[Path], None], name: str) -> None:
    spec = spec_for(bundle)
    store(bundle, spec)
    harm(bundle / getattr(spec, name))
    with pytest.raises(IntegrityError, match=spec.key):
        check(bundle)

    assert find_engine(bundle, spec) is None
    store(bundle, spec)
    check(bundle)


def test_a_sidecar_of_another_file_does_not_count(bundle: Path) -> None:
    spec = spec_for(bundle)
    store(bundle, spec)
    alter(bundle / spec.path)
    record_again(bundle, spec.path)

    assert find_engine(bundle, spec) is None


def test_a_sidecar_of_another_schema_is_not_found(bundle: Path) -> None:
    spec = spec_for(bundle)
    store(bundle, spec)
    sidecar = bundle / spec.record_path
    sidecar.write_text(sidecar.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    record_again(bundle, spec.record_path)

    assert find_engine(bundle, spec) is None


def test_fine_tunes_of_one_architecture_share_no_engine(tmp_path: Path) -> None:
    one, other = (
        write_bundle(tmp_path / str(seed), model=MeanModel(seed=seed), precisions=(Precision.FP16,)) for seed in (1, 2)
    )
    store(one, spec_for(one))
    shutil.copytree(one / "tensorrt", other / "tensorrt")
    record_all(other)

    assert spec_for(one).key != spec_for(other).key
    assert find_engine(other, spec_for(other)) is None
    (foreign,) = read_engines(Bundle.open(other))
    assert not foreign.is_of(read_manifest(other))


def test_a_variant_made_anew_leaves_its_engine_behind(bundle: Path) -> None:
    store(bundle, spec_for(bundle))
    MeanModel(seed=7).save(bundle / MODEL)
    record_again(bundle, MODEL)

    (old,) = read_engines(Bundle.open(bundle))
    assert not old.is_of(read_manifest(bundle))
    assert find_engine(bundle, spec_for(bundle)) is None


def test_a_variant_that_changes_during_the_build_gets_no_engine(bundle: Path) -> None:
    spec = spec_for(bundle)
    MeanModel(seed=7).save(bundle / MODEL)
    record_again(bundle, MODEL)

    with pytest.raises(IntegrityError, match="changed during the build"):
        store(bundle, spec)
    assert read_engines(Bundle.open(bundle)) == ()


def test_files_that_a_copy_shares_stay_as_they_are(bundle: Path, tmp_path: Path) -> None:
    spec = spec_for(bundle)
    store(bundle, spec, b"old")
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy, copy_function=os.link)

    store(bundle, spec, b"new engine")

    assert (copy / spec.path).read_bytes() == b"old"
    check(copy)
    check(bundle)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_bundle_that_cannot_be_written_to_is_said_so(bundle: Path) -> None:
    bundle.chmod(0o500)
    with pytest.raises(InputError, match="cannot write to"):
        store(bundle, spec_for(bundle))


def kill_builds(what: str, bundle: Path, folder: Path) -> list[Path]:
    """Copies of a bundle, in each of which storing or pruning was killed one change later; the last one lived."""
    paths = os.pathsep.join(str(ROOT / name) for name in ("export", "runtime", "profiles", "tests"))
    folder.mkdir()
    command = [sys.executable, KILL_BUILDS, what, bundle, folder]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": paths})
    return sorted(folder.iterdir())


@pytest.mark.parametrize("old", [None, b"the old engine"])
def test_a_kill_at_any_moment_leaves_a_bundle_that_verifies(bundle: Path, tmp_path: Path, old: bytes | None) -> None:
    spec = spec_for(bundle)
    if old is not None:
        store(bundle, spec, old)

    *killed, lived = kill_builds("store", bundle, tmp_path / "copies")

    assert len(killed) > 5
    for copy in killed:
        check(copy)
        found = find_engine(copy, spec)
        assert found is None or (copy / spec.path).read_bytes() in (old, b"the new engine")
        assert all(record.is_of(read_manifest(copy)) for record in read_engines(Bundle.open(copy)))
        # What was left behind is recorded by whatever copies the bundle, and cleared away by the next build.
        record_all(copy)
        store(copy, spec, b"the next engine")
        check(copy)
        assert sorted(path.suffix for path in (copy / "tensorrt").iterdir()) == [".engine", ".json"]
    assert (lived / spec.path).read_bytes() == b"the new engine"
    assert find_engine(lived, spec) is not None


# Pruning


def replace_variant(bundle: Path) -> None:
    """Make the fp16 variant anew, so that its engines are of an older one."""
    MeanModel(seed=7).save(bundle / MODEL)
    record_again(bundle, MODEL)


def test_pruning_removes_the_engines_of_older_variants_and_no_other_file(bundle: Path) -> None:
    old = (store(bundle, spec_for(bundle)), store(bundle, spec_for(bundle, targets=("sm89",)), b"another"))
    replace_variant(bundle)
    new = store(bundle, spec_for(bundle), b"the new engine")
    (bundle / "tensorrt" / "notes.engine").write_bytes(b"somebody's own")
    before = set(bundle.rglob("*"))

    pruned = prune_engines(bundle)

    assert {record.key for record in pruned} == {record.key for record in old}
    gone = {bundle / name for record in old for name in (record.spec.path, record.spec.record_path)}
    assert before - set(bundle.rglob("*")) == gone
    assert read_engines(Bundle.open(bundle)) == (new,)
    check(bundle)


def test_pruning_leaves_engines_of_the_variants_that_are_there(bundle: Path) -> None:
    record = store(bundle, spec_for(bundle))
    manifest = (bundle / "crossforge.json").read_bytes()
    assert prune_engines(bundle) == ()
    assert (bundle / "crossforge.json").read_bytes() == manifest
    assert find_engine(bundle, record.spec) == record


def test_pruning_leaves_an_engine_file_that_the_manifest_does_not_name(bundle: Path) -> None:
    record = store(bundle, spec_for(bundle))
    files = {name: file for name, file in read_manifest(bundle).files.items() if name != record.spec.path}
    write_manifest(bundle, replace(read_manifest(bundle), files=files))
    replace_variant(bundle)

    assert prune_engines(bundle) == (record,)
    assert (bundle / record.spec.path).is_file()
    assert not (bundle / record.spec.record_path).exists()


def test_pruning_stops_before_it_removes_anything_where_a_sidecar_cannot_be_read(bundle: Path) -> None:
    one, other = store(bundle, spec_for(bundle)), store(bundle, spec_for(bundle, targets=("sm89",)))
    replace_variant(bundle)
    (bundle / one.spec.record_path).write_text("not a record")
    with pytest.raises(ManifestError, match=one.key):
        prune_engines(bundle)
    assert (bundle / other.spec.path).is_file()


def test_a_kill_while_pruning_leaves_a_bundle_that_verifies(bundle: Path, tmp_path: Path) -> None:
    store(bundle, spec_for(bundle))
    replace_variant(bundle)
    new = store(bundle, spec_for(bundle), b"the new engine")

    *killed, lived = kill_builds("prune", bundle, tmp_path / "copies")

    assert len(killed) > 3
    for copy in (*killed, lived):
        check(copy)
        assert find_engine(copy, new.spec) == new
    assert read_engines(Bundle.open(lived)) == (new,)
