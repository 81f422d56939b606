from __future__ import annotations

import json
from typing import Any

import pytest

from crossforge.profiles import (
    GoldenPair,
    Manifest,
    ManifestError,
    Precision,
    SchemaVersionError,
    SpecialTokens,
    Truncation,
    TruncationSide,
)
from support.builders import make_manifest, make_parity, make_scoring, make_variant


def full_manifest() -> Manifest:
    """Every kind of value that a manifest can hold."""
    return make_manifest(
        scoring=make_scoring(3, ranking_label=2),
        variants={
            Precision.FP32: make_variant(),
            Precision.INT8: make_variant(
                Precision.INT8, parity=make_parity(kendall_tau=None, top1_agreement=None, top10_overlap=None, passed=False)
            ),
        },
        golden=(GoldenPair(query="wo?", passage="Größe 🏙️ \u2028 \x00", logits=(0.1, -1e-30, 12345.678)),),
    )


def altered(path: str, value: object) -> str:
    """The full manifest as JSON, with the value at a dotted path replaced."""
    document = json.loads(full_manifest().to_json())
    *parents, last = path.split(".")
    place: Any = document
    for key in parents:
        place = place[key]
    place[last] = value
    return json.dumps(document)


def test_a_manifest_survives_the_round_trip() -> None:
    manifest = full_manifest()

    assert Manifest.from_json(manifest.to_json()) == manifest


def test_the_schema_version_comes_first() -> None:
    assert next(iter(json.loads(full_manifest().to_json()))) == "schema_version"


def test_text_is_stored_as_it_reads() -> None:
    assert "Größe 🏙️" in full_manifest().to_json()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "bundle/crossforge.json is not JSON"),
        ("", "bundle/crossforge.json is not JSON"),
        ("[]", "has no schema_version; allowed: an integer"),
        ("{}", "has no schema_version"),
        ('{"schema_version": true}', "has no schema_version"),
        ('{"schema_version": "1"}', "has no schema_version"),
        ('{"schema_version": 0}', "unknown schema_version; got 0; allowed: 1"),
        ('{"schema_version": 1}', "$: field 'source' is missing"),
    ],
)
def test_what_is_no_manifest_is_refused_and_says_what_to_do(text: str, message: str) -> None:
    with pytest.raises(ManifestError) as caught:
        Manifest.from_json(text, where="bundle/crossforge.json")
    assert message in str(caught.value)
    assert str(caught.value).endswith("Export the bundle again.")


def test_a_newer_schema_is_told_apart() -> None:
    with pytest.raises(SchemaVersionError, match=r"newer crossforge; got schema_version 2; allowed: up to 1"):
        Manifest.from_json('{"schema_version": 2, "something": "new"}')


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("source.revision", 3, "$.source.revision: expected str, got int"),
        ("source.url", "x", "$.source: unknown field 'url'"),
        ("pad_token_id", None, "$.pad_token_id: expected int, got nothing"),
        ("truncation.side", "middle", "$.truncation.side: expected one of right, left, got 'middle'"),
        ("scoring.labels", ["a", 1, "c"], "$.scoring.labels[1]: expected str, got int"),
        ("scoring.activation", "relu", "$.scoring.activation: expected one of identity, sigmoid, softmax, got 'relu'"),
        ("variants.fp64", {}, f"$.variants: expected one of {', '.join(Precision)}, got 'fp64'"),
        ("variants.fp32.opset", "17", "$.variants.fp32.opset: expected int, got str"),
        ("variants.fp32.parity.passed", 1, "$.variants.fp32.parity.passed: expected bool, got int"),
        ("golden", [{"query": "q"}], "$.golden[0]: field 'passage' is missing"),
        ("files", [], "$.files: expected an object, got list"),
    ],
)
def test_a_bad_value_is_named_by_its_path(path: str, value: object, message: str) -> None:
    with pytest.raises(ManifestError) as caught:
        Manifest.from_json(altered(path, value))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("pair_template.prefix.type_ids", [0, 0], "$.pair_template.prefix: 1 ids, but 2 type_ids"),
        ("truncation.query_max_length", 64, "$.truncation: need 0 < query_max_length < max_length, got 64 and 64"),
        ("truncation.query_max_length", 0, "$.truncation: need 0 < query_max_length < max_length, got 0 and 64"),
        ("truncation.query_max_length", 61, "$: max_length leaves no room for a passage"),
        ("scoring.labels", [], "$.scoring: a model needs at least one label"),
        ("scoring.ranking_label", 3, "$.scoring: ranking_label 3 is not one of 3 labels"),
        ("scoring.ranking_label", -1, "$.scoring: ranking_label -1 is not one of 3 labels"),
        ("input_names", ["attention_mask"], "$: input_names must hold input_ids, got ['attention_mask']"),
        ("variants.fp32.path", "onnx/x.onnx", "$: variant fp32 does not list its own path onnx/x.onnx among its files"),
        ("variants.fp32.files", ["onnx/model.onnx", "y"], "$: variant fp32 names y, which files does not record"),
    ],
)
def test_values_that_contradict_each_other_are_refused(path: str, value: object, message: str) -> None:
    with pytest.raises(ManifestError) as caught:
        Manifest.from_json(altered(path, value))
    assert message in str(caught.value)


def test_the_constructors_check_as_well() -> None:
    with pytest.raises(ValueError, match="2 ids, but 1 type_ids"):
        SpecialTokens(ids=(1, 2), type_ids=(0,))
    with pytest.raises(ValueError, match="query_max_length"):
        Truncation(max_length=8, query_max_length=8, side=TruncationSide.RIGHT)
    with pytest.raises(ValueError, match="at least one label"):
        make_scoring(0)
    with pytest.raises(ValueError, match="input_names"):
        make_manifest(input_names=())


def test_two_texts_of_equal_standing_have_no_query() -> None:
    manifest = make_manifest(truncation=Truncation(max_length=64, query_max_length=None, side=TruncationSide.RIGHT))
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert manifest.truncation.is_symmetric
    assert manifest.truncation.describe() == "up to 64 tokens; the longer text gives way on the right"
    assert manifest.truncation.query_room(3) == 60


@pytest.mark.parametrize(("query_max_length", "fits"), [(60, True), (61, False)])
def test_a_passage_of_one_token_must_fit_beside_the_longest_query(query_max_length: int, fits: bool) -> None:
    truncation = Truncation(max_length=64, query_max_length=query_max_length, side=TruncationSide.LEFT)

    if fits:
        assert make_manifest(truncation=truncation).pair_template.special_token_count == 3
    else:
        with pytest.raises(ValueError, match="leaves no room"):
            make_manifest(truncation=truncation)


def test_a_model_that_does_not_rank_has_no_ranking_label() -> None:
    manifest = make_manifest(scoring=make_scoring(3, ranking_label=None))

    assert Manifest.from_json(manifest.to_json()).scoring.ranking_label is None


def test_a_variant_must_list_its_own_path_among_its_files() -> None:
    with pytest.raises(ValueError, match="files"):
        make_manifest(variants={Precision.FP32: make_variant(files=())})


def test_golden_logits_must_have_a_number_for_each_label() -> None:
    with pytest.raises(ValueError, match="golden"):
        make_manifest(scoring=make_scoring(3), golden=(GoldenPair(query="q", passage="p", logits=(0.5,)),))


@pytest.mark.parametrize("constant", [float("nan"), float("inf")])
def test_numbers_that_json_does_not_have_are_refused(constant: float) -> None:
    with pytest.raises(ManifestError, match="is not a JSON number"):
        Manifest.from_json(altered("golden", [{"query": "q", "passage": "p", "logits": [constant] * 3}]))


def test_json_nested_too_deeply_is_no_manifest() -> None:
    with pytest.raises(ManifestError, match="not JSON"):
        Manifest.from_json("[" * 100_000)
