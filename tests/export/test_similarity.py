"""An STS head from its checkpoint to its figures: RoBERTa, one label, sigmoid, two sentences of equal standing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import CrossEncoder as Original
from typer.testing import CliRunner

from crossforge.export.cli import app
from crossforge.export.exporter import ExportOptions, export_bundle
from crossforge.export.gates import OPEN_GATE
from crossforge.export.pair_evaluation import compare_scores, evaluate_pairs
from crossforge.export.source import SourceOptions
from crossforge.profiles import Activation, InputError, Precision, TruncationWarning
from crossforge.runtime import CrossEncoder, Reranker
from crossforge.runtime.bundle import Bundle
from support.tiny_models import MAX_LENGTH, ActivationPlace, save_tiny_model

LONG = "the river Spree flows through the city of Berlin and "
PAIRS = [
    ("A man plays the guitar.", "Someone is playing a guitar."),
    ("The train leaves at noon.", "Oranges are rich in vitamin C."),
    (LONG * 3, "Water boils at 100 degrees Celsius."),
    ("Water boils at 100 degrees Celsius.", LONG * 3),
    (LONG * 9, LONG * 7),
    (LONG * 7, LONG * 9),
]
"""One pair a text; the last four lose tokens, or would to a query's contract."""
SIGMOID = "torch.nn.modules.activation.Sigmoid"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(
        tmp_path_factory.mktemp("sts") / "checkpoint",
        "roberta",
        activation=SIGMOID,
        activation_place=ActivationPlace.OLD_CONFIG,
    )


@pytest.fixture(scope="module")
def original(checkpoint: Path) -> Original:
    return Original(str(checkpoint), device="cpu")


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, precisions = tmp_path_factory.mktemp("sts") / "bundle", (Precision.FP32, Precision.INT8)
    source = SourceOptions(symmetric=True)
    export_bundle(str(checkpoint), path, ExportOptions(gates=dict.fromkeys(precisions, OPEN_GATE), source=source))
    return path


def test_the_manifest_says_what_the_head_is_and_what_gives_way(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    assert manifest.architecture == "RobertaForSequenceClassification"
    assert manifest.scoring.activation is Activation.SIGMOID
    assert manifest.truncation.query_max_length is None
    assert manifest.truncation.max_length == MAX_LENGTH
    assert manifest.variants[Precision.FP32].parity.max_abs_diff < 1e-4
    shown = CliRunner().invoke(app, ["inspect", str(bundle)]).stdout
    assert f"up to {MAX_LENGTH} tokens; the longer text gives way on the right" in " ".join(shown.split())


def test_predict_is_that_of_sentence_transformers_long_texts_included(bundle: Path, original: Original) -> None:
    expected = original.predict(PAIRS)
    with Reranker.load(bundle, provider="cpu", precision="fp32", check_golden=True) as reranker:
        with pytest.warns(TruncationWarning, match="4 of 6 pairs"):
            scores = reranker.predict(PAIRS)
        alone = [float(reranker.predict([pair])[0]) for pair in PAIRS[:2]]
    assert ((scores > 0) & (scores < 1)).all()
    np.testing.assert_allclose(scores, expected, rtol=0, atol=2e-5)
    np.testing.assert_allclose(alone, expected[:2], rtol=0, atol=2e-5)


def test_the_drop_in_cuts_to_a_shorter_length_as_the_original_does(bundle: Path, checkpoint: Path) -> None:
    expected = Original(str(checkpoint), device="cpu", max_length=40).predict(PAIRS)
    with CrossEncoder(bundle, max_length=40, precision="fp32") as ours, pytest.warns(TruncationWarning):
        np.testing.assert_allclose(ours.predict(PAIRS), expected, rtol=0, atol=2e-5)


@pytest.mark.usefixtures("exact_int8")
def test_int8_follows(bundle: Path, original: Original) -> None:
    pairs = [(first, second) for first, _ in PAIRS for _, second in PAIRS]
    with Reranker.load(bundle, provider="cpu", precision="int8") as reranker, pytest.warns(TruncationWarning):
        scores = reranker.predict(pairs)
    assert np.corrcoef(scores, original.predict(pairs))[0, 1] > 0.95


def test_a_querys_contract_cuts_a_long_first_sentence_and_says_so(bundle: Path, original: Original) -> None:
    opened = Bundle.open(bundle)
    for_queries = replace(opened.manifest.truncation, query_max_length=32)
    with Reranker.load(
        replace(opened, manifest=replace(opened.manifest, truncation=for_queries)), provider="cpu", precision="fp32"
    ) as reranker:
        scored = reranker.score_pairs(PAIRS)
        with pytest.warns(TruncationWarning):
            scores = reranker.predict(PAIRS)
    assert scored.query_truncated.tolist() == [False, False, True, False, True, True]
    assert abs(scores[2] - original.predict(PAIRS[2:3])[0]) > 1e-3


def test_symmetric_texts_have_no_query_to_keep() -> None:
    with pytest.raises(InputError, match="two texts of equal standing have no query"):
        SourceOptions(symmetric=True, query_max_length=32)


# Evaluating


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.csv"
    rows = [f'"{a}","{b}",{i % 2},{i / 2}' for i, (a, b) in enumerate([(a, b) for a, _ in PAIRS for _, b in PAIRS])]
    path.write_text("\n".join(["sentence1,sentence2,label,similarity", *rows]))
    return path


def evaluate(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["evaluate", *(str(argument) for argument in arguments)])
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_variants_are_judged_by_graded_labels(bundle: Path, labelled: Path, original: Original) -> None:
    stats = pytest.importorskip("scipy.stats")
    document = json.loads(evaluate(bundle, "--pairs", labelled, "--label-column", "similarity", "--json"))
    pairs = [(a, b) for a, _ in PAIRS for _, b in PAIRS]
    expected = stats.spearmanr(original.predict(pairs), np.arange(len(pairs)) / 2).statistic
    fp32, int8 = document["variants"]["fp32"], document["variants"]["int8"]
    assert fp32["graded"]["spearman"] == pytest.approx(expected, abs=1e-3)
    assert fp32["difference"] is None
    assert int8["difference"]["mean"] == pytest.approx(int8["graded"]["spearman"] - fp32["graded"]["spearman"])
    assert int8["difference"]["interval_95"][0] <= int8["difference"]["mean"] <= int8["difference"]["interval_95"][1]


def test_variants_are_judged_at_the_references_threshold(bundle: Path, labelled: Path) -> None:
    evaluation = evaluate_pairs(bundle, labelled)
    fp32, int8 = evaluation.variants[Precision.FP32], evaluation.variants[Precision.INT8]
    assert fp32.binary is not None
    assert int8.as_deployed is not None
    best = next(iter(fp32.binary.best.values()))
    assert fp32.as_deployed == best
    assert int8.as_deployed.threshold == best.threshold
    table = evaluate(bundle, "--pairs", labelled)
    assert "best F1" in table
    assert "36 pairs; labels: binary, every one is 0 or 1" in table


def test_a_difference_that_cannot_be_had_is_none() -> None:
    labels, scores = np.asarray([1.0, 2, 3, 4]), np.asarray([0.1, 0.2, 0.3, 0.4])
    assert compare_scores(np.ones(4), scores, labels, is_binary=False) is None
    same = compare_scores(scores, scores, labels, is_binary=False)
    assert same is not None
    assert (same.mean, same.interval_95) == (0, (0, 0))


def test_one_of_two_ways_to_evaluate_must_be_chosen(bundle: Path, labelled: Path) -> None:
    for arguments in ([], ["--run", "x"], ["--run", "x", "--qrels", "y", "--pairs", str(labelled)]):
        result = CliRunner().invoke(app, ["evaluate", str(bundle), *arguments])
        assert result.exit_code == 2
        assert "either --run with --qrels, or --pairs" in result.stderr
    unlabelled = labelled.with_suffix(".jsonl")
    unlabelled.write_text('{"text1": "a", "text2": "b"}\n')
    result = CliRunner().invoke(app, ["evaluate", str(bundle), "--pairs", str(unlabelled)])
    assert "has no labels to judge by" in result.stderr
