from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from crossforge.profiles import (
    DEFAULT_WORKLOAD,
    CostModel,
    DeploymentProfile,
    EngineError,
    ExecutionProvider,
    GateError,
    InputError,
    ParityQuality,
    Precision,
    Workload,
)
from crossforge.runtime import Bundle, Reranker
from crossforge.runtime.profiling.bench import LocalBench
from crossforge.runtime.profiling.cost import CostSample, shape_grid
from crossforge.runtime.profiling.requests import typical_request
from crossforge.runtime.profiling.settings import QualityLimits, Setting, candidate_settings
from crossforge.runtime.profiling.space import SearchSpace, find_space
from crossforge.runtime.profiling.tuning import TuningOptions, TuningReport, explain, tune
from crossforge.runtime.profiling.tuning_cli import app
from support.builders import make_machine, make_parity, write_bundle

COST = CostModel(fixed_ms=0.2, per_token_ms=0.01, per_token_squared_ms=1e-6)
MEGABYTE = 1_000_000


def setting(budget_tokens: int = 384, precision: Precision = Precision.INT8, workers: int = 2) -> Setting:
    return Setting(provider=ExecutionProvider.CPU, precision=precision, workers=workers, budget_tokens=budget_tokens)


DEFAULT = setting()


class FakeBench:
    """A machine whose speeds are known, with a clock of its own."""

    def __init__(
        self, time_ms: Callable[[Setting], float], *, noise: float = 0.03, gain: float = 1.0, memory: int = 100 * MEGABYTE
    ) -> None:
        self._time_ms, self._noise, self._gain, self._memory = time_ms, noise, gain, memory
        self._random = random.Random(2)
        self.seconds = 0.0
        self.with_cost: list[Setting] = []

    def clock(self) -> float:
        return self.seconds

    def latency_ms(self, setting: Setting, cost: CostModel | None = None) -> float:
        gain = 1.0
        if cost is not None:
            self.with_cost.append(setting)
            gain = self._gain
        ms = self._time_ms(setting) / gain * (1 + self._noise * self._random.uniform(-1, 1))
        self.seconds += ms / 1e3
        return ms

    def cost_samples(self, setting: Setting, budget_s: float) -> Sequence[CostSample]:
        self.seconds += budget_s
        grid = shape_grid(budget_tokens=setting.budget_tokens, max_length=512)
        return [CostSample(batch=n, sequence=s, ms=COST.predict_ms(n, s)) for n, s in grid]

    def resident_bytes(self, setting: Setting) -> int:
        return self._memory + (100 * MEGABYTE if setting.precision is Precision.FP32 else 0)


def space(**changes: Any) -> SearchSpace:
    settings = candidate_settings({ExecutionProvider.CPU: [Precision.INT8, Precision.FP32]}, cores=2, also=(DEFAULT,))
    return replace(SearchSpace(default=DEFAULT, settings=settings, allows_default=True, skipped=()), **changes)


def run(bench: FakeBench, space_: SearchSpace | None = None, **options: Any) -> TuningReport:
    return tune(space_ or space(), bench, TuningOptions(**options), clock=bench.clock)


def test_the_fastest_setting_is_found_with_its_cost_model_and_beats_the_default() -> None:
    best = setting(1024)
    bench = FakeBench(lambda s: 40.0 if s == best else 50.0 if s.precision is Precision.INT8 else 90.0)
    report = run(bench)

    assert report.setting == report.fastest == best
    assert report.deployment == best.deployment(report.cost.model)
    assert report.cost.model.per_token_ms == pytest.approx(COST.per_token_ms)
    assert report.comparison.ratio == pytest.approx(1.25, rel=0.05)
    assert set(bench.with_cost) == {best}
    assert report.resident_bytes is None
    lines = explain(report)
    assert lines[0] == "int8 on cpu, 2 workers, 1,024 tokens a batch."
    assert "times as fast as the default" in lines[2]


def test_the_default_stays_where_nothing_is_shown_to_be_faster() -> None:
    report = run(FakeBench(lambda s: 50.0 if s.precision is Precision.INT8 else 90.0))

    assert report.setting == DEFAULT
    assert report.deployment.budget_tokens == DEFAULT.budget_tokens
    assert explain(report)[0].endswith("(the default).")


@pytest.mark.parametrize(
    ("gain", "words", "carries_cost"),
    [(1.2, "rounds.", True), (1.0, ": no gain is shown.", True), (0.8, ": left out.", False)],
)
def test_a_default_that_is_the_fastest_is_measured_with_and_without_its_cost_model(
    gain: float, words: str, carries_cost: bool
) -> None:
    report = run(FakeBench(lambda s: 30.0 if s == DEFAULT else 60.0, gain=gain))

    assert report.setting == report.fastest == DEFAULT
    assert report.comparison.ratio == pytest.approx(gain, rel=0.05)
    assert (report.deployment.cost is not None) == carries_cost
    assert explain(report)[2].startswith("No other setting is better")
    assert explain(report)[2].endswith(words)


def test_a_setting_beyond_the_limit_of_memory_is_passed_over() -> None:
    bench = FakeBench(lambda s: 20.0 if s.precision is Precision.FP32 else 50.0 if s.budget_tokens == 256 else 60.0)
    report = run(bench, max_memory_bytes=150 * MEGABYTE)

    assert report.setting.precision is Precision.INT8
    assert report.resident_bytes == 100 * MEGABYTE
    assert "100 MB at its peak" in explain(report)[0]


def test_a_limit_of_memory_that_nothing_keeps_is_an_answer() -> None:
    with pytest.raises(
        GateError, match=r"no setting is within the limit of memory; got 100 MB for .*; allowed: up to 50 MB"
    ):
        run(FakeBench(lambda _: 50.0), max_memory_bytes=50 * MEGABYTE)


def test_a_default_outside_the_limits_is_not_kept_however_fast() -> None:
    fp32 = candidate_settings({ExecutionProvider.CPU: [Precision.FP32]}, cores=2)
    report = run(FakeBench(lambda s: 20.0 if s == DEFAULT else 60.0), space(settings=fp32, allows_default=False))

    assert report.setting.precision is Precision.FP32
    assert "the default is outside the limits" in explain(report)[2]


def test_a_budget_too_short_for_a_sample_is_refused() -> None:
    with pytest.raises(InputError, match="the budget is too short to measure one setting"):
        run(FakeBench(lambda _: 50.0), budget_s=1e-9)
    with pytest.raises(InputError, match="too short; got 0"):
        run(FakeBench(lambda _: 50.0), budget_s=0.0)


def test_settings_cover_variants_workers_and_budgets_once() -> None:
    settings = candidate_settings({ExecutionProvider.CPU: [Precision.INT8]}, cores=8, also=(setting(workers=8),))

    assert settings[0] == setting(workers=8)
    assert len(set(settings)) == len(settings) == 18
    assert {s.workers for s in settings} == {1, 4, 8}
    assert {s.workers for s in candidate_settings({ExecutionProvider.CPU: [Precision.INT8]}, cores=1)} == {1}


QUALITY = ParityQuality(ndcg_at_10=0.60, mrr_at_10=0.5, reference_ndcg_at_10=0.62, reference_mrr_at_10=0.5)


@pytest.mark.parametrize(
    ("limits", "parity", "reason"),
    [
        ({}, {"kendall_tau": 0.5}, None),
        ({}, {"passed": False}, "it failed its parity gate"),
        ({"min_kendall_tau": 0.98}, {"kendall_tau": 0.985}, None),
        ({"min_kendall_tau": 0.98}, {"kendall_tau": 0.97}, "its Kendall tau is 0.9700, below 0.98"),
        ({"min_kendall_tau": 0.98}, {"kendall_tau": None}, "its Kendall tau is unknown"),
        ({"max_ndcg_loss": 0.03}, {"kendall_tau": 0.9, "quality": QUALITY}, None),
        ({"max_ndcg_loss": 0.01}, {"kendall_tau": 0.9, "quality": QUALITY}, "it loses 0.0200 of nDCG@10, above 0.01"),
        ({"max_ndcg_loss": 0.01}, {"kendall_tau": 0.9}, "its nDCG was not measured"),
        ({"max_ndcg_loss": 0.0}, {"kendall_tau": 1.0}, None),
    ],
)
def test_quality_limits_read_the_parity_figures(
    limits: dict[str, float], parity: dict[str, Any], reason: str | None
) -> None:
    answer = QualityLimits(**limits).why_not(make_parity(**parity))

    assert answer is None if reason is None else reason in (answer or "")


@pytest.mark.parametrize("limits", [{"max_ndcg_loss": -0.1}, {"max_ndcg_loss": 2.0}, {"min_kendall_tau": 1.5}])
def test_impossible_limits_are_refused(limits: dict[str, float]) -> None:
    with pytest.raises(InputError, match="is no"):
        QualityLimits(**limits)


def two_variants(folder: Path, kendall_tau: float = 0.9) -> Path:
    worse = {Precision.INT8: {"parity": make_parity(reference="fp32", kendall_tau=kendall_tau)}}
    return write_bundle(folder, precisions=(Precision.FP32, Precision.INT8), variant_overrides=worse)


def test_the_space_holds_what_can_run_here_and_is_good_enough(tmp_path: Path) -> None:
    bundle = Bundle.open(two_variants(tmp_path))
    free = find_space(bundle, make_machine(), QualityLimits())
    held = find_space(bundle, make_machine(), QualityLimits(min_kendall_tau=0.99))

    assert free.default == held.default == DEFAULT
    assert {s.precision for s in free.settings} == {Precision.FP32, Precision.INT8}
    assert {s.precision for s in held.settings} == {Precision.FP32}
    assert (free.allows_default, held.allows_default) == (True, False)
    assert ("int8 on cpu", "its Kendall tau is 0.9000, below 0.99") in [(item.what, item.why) for item in held.skipped]


def test_every_provider_that_can_run_is_searched(tmp_path: Path) -> None:
    machine = make_machine(
        gpus=("NVIDIA L4",),
        gpu_reason="",
        gpu_targets=("sm89",),
        onnxruntime_packages=("onnxruntime-gpu 1.23.0",),
        onnxruntime_providers=("CUDAExecutionProvider", "CPUExecutionProvider"),
    )
    found = find_space(Bundle.open(two_variants(tmp_path)), machine, QualityLimits())

    assert {s.provider for s in found.settings} == {ExecutionProvider.CUDA, ExecutionProvider.CPU}
    assert found.default.provider is ExecutionProvider.CUDA
    assert found.default in found.settings
    assert "tensorrt" in [item.what for item in found.skipped]


def test_a_variant_that_is_not_exact_here_is_left_out(tmp_path: Path) -> None:
    found = find_space(Bundle.open(two_variants(tmp_path)), make_machine(instruction_sets=("avx2",)), QualityLimits())

    assert {s.precision for s in found.settings} == {Precision.FP32}
    assert found.default.precision is Precision.FP32


def test_no_variant_within_the_limits_is_an_answer(tmp_path: Path) -> None:
    bundle = Bundle.open(
        write_bundle(tmp_path, variant_overrides={Precision.FP32: {"parity": make_parity(kendall_tau=0.9)}})
    )

    with pytest.raises(GateError, match=r"no variant of .* may be chosen \(fp32 on cpu: its Kendall tau is 0.9000"):
        find_space(bundle, make_machine(), QualityLimits(min_kendall_tau=0.99))


def test_tune_writes_a_profile_that_the_runtime_honours_and_plan_answers_from(tmp_path: Path) -> None:
    bundle, target = write_bundle(tmp_path / "bundle"), tmp_path / "deployment.toml"
    options = ["--budget", "2", "--max-memory", "4000", "--out", str(target), "--json"]
    done = CliRunner().invoke(app, ["tune", str(bundle), *options])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    profile = DeploymentProfile.from_toml(target)

    assert document["deployment"]["path"] == str(target)
    assert len(document["explanation"]) == 3
    assert document["resident_bytes"] > 10 * MEGABYTE
    assert profile.cost == CostModel(**document["cost"]["model"])
    with Reranker.load(bundle, deployment=profile) as reranker:
        assert reranker.cost == profile.cost
        assert reranker.workers == profile.workers
        assert len(reranker.rank("where is the city", ["berlin", "a passage"] * 20)) == 40

    arguments = ["plan", str(bundle), "--deployment", str(target), "--candidates", "20", "--length", "32"]
    planned = CliRunner().invoke(app, [*arguments, "--slo-ms", "1000", "--json"])
    assert planned.exit_code == 0, planned.output
    answer = json.loads(planned.stdout)
    assert answer["fits"] == (answer["predicted_ms"] <= 1000)
    assert answer["most_candidates"] >= 1
    words = CliRunner().invoke(app, [*arguments, "--slo-ms", "0.0001"])
    assert "they do not fit; the most that do: 0" in words.output


def test_plan_refuses_what_it_cannot_answer(tmp_path: Path) -> None:
    bundle, profile = write_bundle(tmp_path / "bundle"), tmp_path / "deployment.toml"
    profile.write_text("workers = 1", encoding="utf-8")
    arguments = ["plan", str(bundle), "--deployment", str(profile)]

    without = CliRunner().invoke(app, [*arguments, "--length", "8"])
    assert without.exit_code == 2
    assert "carries no cost model" in without.output
    assert "the pairs are longer than the model reads" in CliRunner().invoke(app, [*arguments, "--length", "999"]).output
    profile.write_text('precision = "fp16"', encoding="utf-8")
    absent = CliRunner().invoke(app, [*arguments, "--length", "8"])
    assert "is for a variant that the bundle has not; got fp16; allowed: fp32" in absent.output


def test_a_workload_sets_what_is_measured(tmp_path: Path) -> None:
    bundle, run_file = write_bundle(tmp_path / "bundle"), tmp_path / "run.jsonl"
    run_file.write_text(
        json.dumps({"qid": "1", "query": "the city", "passages": [{"id": "a", "text": "berlin"}, {"id": "b", "text": "x"}]})
    )
    target = tmp_path / "deployment.toml"
    done = CliRunner().invoke(app, ["tune", str(bundle), "--workload", str(run_file), "--budget", "1", "--out", str(target)])

    assert done.exit_code == 0, done.output
    assert f"use it with --deployment {target}" in done.output.replace("\n", "")


@pytest.mark.parametrize("target", ["no/file.toml", ""])
def test_tune_says_at_once_where_it_cannot_write(tmp_path: Path, target: str) -> None:
    done = CliRunner().invoke(app, ["tune", str(write_bundle(tmp_path)), "--out", str(tmp_path / target)])

    assert done.exit_code == 2
    assert "the deployment profile cannot be written there" in done.output


def test_a_setting_that_does_not_run_in_a_fresh_process_says_why(tmp_path: Path) -> None:
    bundle = Bundle.open(write_bundle(tmp_path))
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"damaged")
    with (
        LocalBench(bundle, DEFAULT_WORKLOAD) as bench,
        pytest.raises(EngineError, match=r"does not run in a fresh process; got .*IntegrityError"),
    ):
        bench.resident_bytes(setting(precision=Precision.FP32))


def test_a_request_has_the_lengths_of_its_workload(tmp_path: Path) -> None:
    with Reranker.load(write_bundle(tmp_path)) as reranker:
        workload = Workload(pair_lengths={20: 3, 40: 1, 9999: 1}, candidates={5: 2, 500: 1})
        request = typical_request(workload, reranker.tokenizer)
        longest = reranker.manifest.truncation.max_length

        assert request.lengths.tolist() == [20, 20, 20, 40, longest]
