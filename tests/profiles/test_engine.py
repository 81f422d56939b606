from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossforge.profiles import (
    AMPERE_AND_LATER,
    EngineBackend,
    EngineRecord,
    EngineSpec,
    FileRecord,
    ManifestError,
    Precision,
)
from support.builders import make_engine_record, make_engine_spec, make_manifest, make_profile, make_variant
from support.strategies import no_deadline, profile_sets

names = st.text("abcdefghij0123456789", min_size=1, max_size=8)
digests = st.text("0123456789abcdef", min_size=64, max_size=64)
INGREDIENTS: dict[str, st.SearchStrategy[Any]] = {
    "precision": st.sampled_from(Precision),
    "model": st.dictionaries(names, digests, min_size=1, max_size=2),
    "profiles": profile_sets,
    "backend": st.sampled_from(EngineBackend),
    "compiler_version": names,
    "targets": st.lists(names, min_size=1, max_size=3, unique=True).map(tuple),
    "gpu": st.none() | names,
    "platform": names,
    "builder_level": st.none() | st.integers(0, 5),
    "workspace_mb": st.none() | st.integers(1, 100),
    "version_compatible": st.booleans(),
    "hardware_compatible": st.booleans(),
}
specs = st.builds(EngineSpec, **INGREDIENTS)


def test_every_ingredient_is_tried() -> None:
    assert INGREDIENTS.keys() == {field.name for field in fields(EngineSpec)}


@pytest.mark.parametrize("name", INGREDIENTS)
@no_deadline
@given(data=st.data())
def test_each_ingredient_changes_the_key(name: str, data: st.DataObject) -> None:
    spec = data.draw(specs)
    value = data.draw(INGREDIENTS[name].filter(lambda value: value != getattr(spec, name)))

    assert replace(spec, **{name: value}).key != spec.key


@no_deadline
@given(one=specs, other=specs)
def test_specs_share_a_key_only_if_they_are_equal(one: EngineSpec, other: EngineSpec) -> None:
    assert (one.key == other.key) == (one == other)


def test_a_key_does_not_depend_on_the_order_of_files() -> None:
    model = {"a": "1" * 64, "b": "2" * 64}
    assert make_engine_spec(model=model).key == make_engine_spec(model=dict(reversed(model.items()))).key


def test_keys_stay_what_they_are() -> None:
    """A key that changes between versions of crossforge makes every engine be built again."""
    assert make_engine_spec().key == "96b0b1192d321f08019795200b484a24"


@no_deadline
@given(spec=specs)
def test_a_record_is_read_as_it_was_written(spec: EngineSpec) -> None:
    record = make_engine_record(spec)
    assert EngineRecord.from_json(record.to_json(), where="sidecar") == record


def test_files_are_named_by_the_key() -> None:
    spec = make_engine_spec()
    assert spec.path == f"tensorrt/{spec.key}.engine"
    assert spec.record_path == f"tensorrt/{spec.key}.json"


@pytest.mark.parametrize(
    ("targets", "gpu", "runs"),
    [
        (("sm86",), "sm86", True),
        (("sm86",), "sm89", False),
        (("sm86", "sm89"), "sm89", True),
        (("sm86", "sm89"), "sm120", False),
        ((AMPERE_AND_LATER,), "sm75", False),
        ((AMPERE_AND_LATER,), "sm80", True),
        ((AMPERE_AND_LATER,), "sm120", True),
    ],
)
def test_an_engine_runs_on_its_targets_alone(targets: tuple[str, ...], gpu: str, runs: bool) -> None:
    assert make_engine_spec(targets=targets, hardware_compatible=True).runs_on(gpu) is runs


def test_several_targets_make_one_word() -> None:
    assert make_engine_spec(targets=("sm86", "sm89")).target == "sm86+sm89"


def altered(**changes: object) -> str:
    return json.dumps(json.loads(make_engine_record().to_json()) | changes)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "unknown schema_version"),
        (altered(schema_version=2), "unknown schema_version; got 2; allowed: 1"),
        (altered(key="0" * 32), "its spec hashes to"),
        (altered(build_seconds="1"), r"\$\.build_seconds: expected float"),
        (altered(surprise=1), "unknown field 'surprise'"),
        (make_engine_record().to_json().replace('"opt": 64', '"opt": 65'), "out of order"),
        (make_engine_record().to_json().replace('"sm86"', '"sm89"'), "its spec hashes to"),
    ],
)
def test_a_sidecar_that_is_not_one_is_refused(text: str, words: str) -> None:
    with pytest.raises(ManifestError, match=words) as error:
        EngineRecord.from_json(text, where="sidecar")
    assert "crossforge build" in str(error.value)


def test_an_engine_belongs_to_the_very_files_it_was_built_from() -> None:
    variant = make_variant(Precision.FP16)
    manifest = make_manifest(variants={Precision.FP16: variant})
    record = make_engine_record(make_engine_spec(model={variant.path: manifest.files[variant.path].sha256}))
    fine_tuned = {**manifest.files, variant.path: FileRecord(sha256="6" * 64, size_bytes=1)}

    assert record.is_of(manifest)
    assert not record.is_of(replace(manifest, files=fine_tuned))
    assert not record.is_of(make_manifest())


def test_profiles_are_told_apart_by_their_opt() -> None:
    one, other = make_profile((1, 64), batch=8), make_profile((1, 64), batch=9)
    assert make_engine_spec(profiles=(one,)).key != make_engine_spec(profiles=(other,)).key
