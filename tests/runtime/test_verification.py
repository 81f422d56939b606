from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from crossforge.profiles import (
    BundleNotFoundError,
    DeploymentProfile,
    ExecutionProvider,
    Precision,
    ProviderUnavailableError,
)
from crossforge.runtime.progress import Stage
from crossforge.runtime.verification import verify_bundle
from support.builders import read_manifest, record_again, write_bundle, write_manifest
from support.families import ROBERTA_TEMPLATE, make_tokenizer, word_tokenizer

FP32, INT8 = Precision.FP32, Precision.INT8


class NotedStages:
    """A progress that keeps what it is told."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, str]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        stage = Stage()
        yield stage
        self.stages.append((name, stage.note))


def write_two_variants(folder: Path) -> Path:
    return write_bundle(folder, precisions=(FP32, INT8))


def test_an_unharmed_bundle_passes(tmp_path: Path) -> None:
    verification = verify_bundle(write_two_variants(tmp_path))

    assert verification.passed
    assert (verification.damaged_files, verification.template_problem) == ((), None)
    assert [verdict.precision for verdict in verification.variants] == [FP32, INT8]
    for verdict in verification.variants:
        assert verdict.problem is None
        assert verdict.max_abs_diff is not None
        assert verdict.max_abs_diff <= verdict.tolerance == 1e-4


def test_every_stage_says_what_it_found(tmp_path: Path) -> None:
    progress = NotedStages()
    verify_bundle(write_two_variants(tmp_path), progress=progress)

    names = [name for name, _ in progress.stages]
    notes = dict(progress.stages)
    assert names == [
        "compare files",
        "compare the pair template",
        "score golden pairs with fp32",
        "score golden pairs with int8",
    ]
    assert notes["compare files"] == "3 files, 0 damaged"
    assert notes["compare the pair template"] == "as the tokenizer joins pairs"
    assert notes["score golden pairs with int8"].startswith("largest difference ")


def test_every_damaged_file_is_listed(tmp_path: Path) -> None:
    write_two_variants(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "onnx/model_int8.onnx").unlink()
    verification = verify_bundle(tmp_path)

    assert not verification.passed
    assert [problem.partition(" ")[0] for problem in verification.damaged_files] == [
        "onnx/model_int8.onnx",
        "tokenizer.json",
    ]
    assert "cannot read the tokenizer" in str(verification.template_problem)
    for verdict in verification.variants:
        assert verdict.max_abs_diff is None
        assert "is damaged" in str(verdict.problem)


def test_a_damaged_file_that_no_variant_reads_is_damage_all_the_same(tmp_path: Path) -> None:
    (write_bundle(tmp_path) / "config.json").write_text("{}")
    record_again(tmp_path, "config.json")
    (tmp_path / "config.json").write_text("{ }")
    verification = verify_bundle(tmp_path)

    assert verification.damaged_files == ("config.json has 3 bytes, the manifest says 2",)
    assert [verdict.problem for verdict in verification.variants] == [None]
    assert not verification.passed


def test_one_damaged_variant_does_not_condemn_the_other(tmp_path: Path) -> None:
    write_two_variants(tmp_path)
    (tmp_path / "onnx/model_int8.onnx").write_bytes(b"garbage")
    record_again(tmp_path, "onnx/model_int8.onnx")
    fp32, int8 = verify_bundle(tmp_path).variants

    assert fp32.problem is None
    assert "ONNX Runtime cannot load" in str(int8.problem)


def test_golden_logits_that_are_not_reproduced_fail(tmp_path: Path) -> None:
    manifest = read_manifest(write_bundle(tmp_path))
    golden = tuple(replace(pair, logits=(pair.logits[0] + 1,)) for pair in manifest.golden)
    write_manifest(tmp_path, replace(manifest, golden=golden))
    verification = verify_bundle(tmp_path)

    assert not verification.passed
    assert verification.damaged_files == ()
    assert "got a difference of 1.0000; allowed: up to 0.0001" in str(verification.variants[0].problem)


def test_a_pair_template_that_is_not_the_tokenizers_fails(tmp_path: Path) -> None:
    write_bundle(tmp_path, pair_template=ROBERTA_TEMPLATE, golden=())
    verification = verify_bundle(tmp_path)

    assert verification.template_problem == "the tokenizer joins pairs in another way"
    assert not verification.passed
    assert verification.variants[0].problem is None


@pytest.mark.parametrize("pair_template", ["[CLS] $B [SEP] $A [SEP]", "$A $B $A"])
def test_a_tokenizer_that_joins_pairs_in_a_strange_way_fails(tmp_path: Path, pair_template: str) -> None:
    write_bundle(tmp_path)
    word_tokenizer(pair_template).save(str(tmp_path / "tokenizer.json"))
    record_again(tmp_path, "tokenizer.json")
    verification = verify_bundle(tmp_path)

    assert "in a way that crossforge does not know" in str(verification.template_problem)
    assert not verification.passed


def test_a_tokenizer_with_other_words_does_not_reproduce_the_golden_scores(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    tokenizer = make_tokenizer("xlm_roberta")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    record_again(tmp_path, "tokenizer.json")
    verification = verify_bundle(tmp_path)

    assert verification.damaged_files == ()
    assert verification.variants[0].problem is not None


def test_what_a_deployment_profile_runs_is_checked_as_it_runs(tmp_path: Path) -> None:
    write_two_variants(tmp_path)
    progress = NotedStages()
    deployment = DeploymentProfile(precision=INT8, providers=(ExecutionProvider.CPU,), workers=1, budget_tokens=40)
    verification = verify_bundle(tmp_path, deployment=deployment, progress=progress)

    assert verification.passed
    assert verification.deployed is not None
    assert verification.deployed.precision is INT8
    assert progress.stages[-1][0] == "score golden pairs as deployed, int8 on cpu"


def test_a_deployment_that_does_not_reproduce_the_golden_scores_fails(tmp_path: Path) -> None:
    write_two_variants(tmp_path)
    (tmp_path / "onnx/model_int8.onnx").write_bytes(b"garbage")
    record_again(tmp_path, "onnx/model_int8.onnx")
    verification = verify_bundle(tmp_path, deployment=DeploymentProfile(precision=INT8))

    assert verification.deployed is not None
    assert "ONNX Runtime cannot load" in str(verification.deployed.problem)
    assert len(verification.problems) == 2
    assert not verification.passed


def test_a_deployment_of_providers_that_are_not_here_is_no_verdict(tmp_path: Path) -> None:
    write_two_variants(tmp_path)
    with pytest.raises(ProviderUnavailableError):
        verify_bundle(tmp_path, deployment=DeploymentProfile(providers=(ExecutionProvider.TENSORRT,)))


def test_there_must_be_a_bundle_to_verify(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError):
        verify_bundle(tmp_path / "absent")
