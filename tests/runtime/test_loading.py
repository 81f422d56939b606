from __future__ import annotations

from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest

from crossforge.profiles import (
    EVERYTHING_OFF,
    Activation,
    CostModel,
    DeploymentProfile,
    EngineError,
    EngineRecord,
    ExecutionProvider,
    GpuOptions,
    InputError,
    Precision,
    ProviderFallbackWarning,
    ProviderUnavailableError,
)
from crossforge.runtime import Bundle, FakeSession, ProviderPlan, Reranker, loading
from crossforge.runtime.loading import open_session
from crossforge.runtime.machine import inspect_machine
from crossforge.runtime.providers import why_not
from crossforge.runtime.sessions import tensorrt
from support.builders import make_engine_record, make_machine, make_profile, write_bundle
from support.families import FAMILIES, make_tokenizer
from support.mean_model import MeanModel

CPU, CUDA = ExecutionProvider.CPU, ExecutionProvider.CUDA
FP32, INT8 = Precision.FP32, Precision.INT8
ONNX = "onnx/model.onnx"
QUERY = "where is the city"
PASSAGES = ["berlin", "people live in Berlin, Größe 3,520,031", "", "the city"]
without_cuda = pytest.mark.skipif(why_not(CUDA, inspect_machine()) is None, reason="CUDA runs here")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("labels", [1, 3])
def test_a_bundle_scores_as_its_model_does(tmp_path: Path, family: str, labels: int) -> None:
    model = MeanModel(labels=labels, uses_type_ids=family == "bert")
    write_bundle(tmp_path, model=model, family=family)
    expected = model.logits([make_tokenizer(family).encode(QUERY, passage) for passage in PASSAGES])

    with Reranker.load(tmp_path, check_golden=True) as reranker:
        logits = reranker.predict([(QUERY, passage) for passage in PASSAGES], activation=Activation.IDENTITY)

    np.testing.assert_allclose(logits.reshape(-1, labels), expected, rtol=1e-4, atol=1e-5)


def test_a_batch_scores_as_its_pairs_do_alone(tmp_path: Path) -> None:
    passages = [f"{passage} {'people ' * i}" for i in range(8) for passage in PASSAGES]
    deployment = DeploymentProfile(budget_tokens=64, workers=3)
    with Reranker.load(write_bundle(tmp_path), deployment=deployment) as reranker:
        together = reranker.score(QUERY, passages)
        alone = [reranker.score(QUERY, [passage])[0] for passage in passages]

    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)


def test_external_data_is_loaded(tmp_path: Path) -> None:
    with Reranker.load(write_bundle(tmp_path, external_data=True), check_golden=True) as reranker:
        assert reranker.check_golden() < 1e-5


def test_what_runs_can_be_read_back(tmp_path: Path) -> None:
    write_bundle(tmp_path, precisions=(FP32, INT8), variant_overrides={INT8: {"instruction_sets": ()}})
    deployment = DeploymentProfile(providers=(CPU,), budget_tokens=99, workers=3)
    with Reranker.load(Bundle.open(tmp_path), deployment=deployment) as reranker:
        assert (reranker.precision, reranker.session.provider) == (INT8, CPU)
        assert (reranker.budget_tokens, reranker.workers) == (99, 3)
        assert reranker.provider_plan == ProviderPlan(candidates=(CPU,), rejected=(), wanted=None)


@pytest.mark.parametrize(("named", "expected"), [("auto", FP32), ("int8", INT8)])
def test_a_named_precision_wins_over_the_deployment(tmp_path: Path, named: str, expected: Precision) -> None:
    write_bundle(tmp_path, precisions=(FP32, INT8))
    with Reranker.load(tmp_path, precision=named, deployment=DeploymentProfile(precision=FP32)) as reranker:
        assert reranker.precision is expected


@pytest.mark.parametrize(("named", "holds"), [("auto", True), ("fp32", True), ("int8", False)])
def test_a_cost_model_is_left_aside_by_another_variant(tmp_path: Path, named: str, holds: bool) -> None:
    write_bundle(tmp_path, precisions=(FP32, INT8))
    cost = CostModel(fixed_ms=1.0, per_token_ms=1.0, per_token_squared_ms=0.0)
    deployment = DeploymentProfile(precision=FP32, providers=(CPU,), workers=2, cost=cost)
    with Reranker.load(tmp_path, precision=named, deployment=deployment) as reranker:
        assert reranker.cost == (cost if holds else None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"provider": "gpu"}, "unknown execution provider; got 'gpu'; allowed: auto, tensorrt, cuda, native, cpu, openvino"),
        ({"precision": "bf16"}, "unknown precision; got 'bf16'; allowed: auto, fp32, fp16, int8"),
        ({"precision": "int8"}, "the bundle has no int8 variant; got int8; allowed: fp32"),
        ({"deployment": DeploymentProfile(precision=Precision.FP16)}, "the bundle has no fp16 variant"),
    ],
)
def test_an_unknown_choice_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    write_bundle(tmp_path)

    with pytest.raises(InputError) as caught:
        Reranker.load(tmp_path, **options)
    assert str(caught.value).startswith(message)


def test_a_strict_load_says_in_one_line_why_the_provider_cannot_run(tmp_path: Path) -> None:
    write_bundle(tmp_path)

    with pytest.raises(ProviderUnavailableError) as caught:
        Reranker.load(tmp_path, provider="tensorrt", strict=True)
    message = str(caught.value)
    reason = why_not(ExecutionProvider.TENSORRT, inspect_machine())
    assert message.startswith(f"the execution provider tensorrt cannot run here (tensorrt: {reason})")
    assert "\n" not in message


@without_cuda
def test_a_fallback_is_warned_of_where_the_bundle_is_loaded(tmp_path: Path) -> None:
    write_bundle(tmp_path)

    with pytest.warns(ProviderFallbackWarning, match=r"^running on cpu \(not cuda: .+\)$") as caught:
        reranker = Reranker.load(tmp_path, provider="cuda")
    with reranker:
        assert reranker.session.provider is CPU
        assert reranker.score(QUERY, PASSAGES).shape == (4,)
    assert [warning.filename for warning in caught] == [__file__]


@without_cuda
def test_a_deployment_without_a_provider_that_runs_is_refused(tmp_path: Path) -> None:
    write_bundle(tmp_path)

    with pytest.raises(ProviderUnavailableError, match="no execution provider can run here"):
        Reranker.load(tmp_path, deployment=DeploymentProfile(providers=(CUDA,)))


PLAN = ProviderPlan(candidates=(CUDA, CPU), rejected=(), wanted=None)
CPU_ONLY = ProviderPlan(candidates=(CPU,), rejected=(), wanted=None)


@without_cuda
def test_a_planned_provider_that_does_not_load_gives_way_to_the_next(tmp_path: Path) -> None:
    bundle = Bundle.open(write_bundle(tmp_path))

    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.warns(ProviderFallbackWarning, match=r"^running on cpu \(not cuda: ONNX Runtime did not load its cuda"),
    ):
        session = open_session(bundle, PLAN, "auto", make_machine(), strict=False, check_files=True).session
    assert session.provider is CPU


@without_cuda
def test_a_strict_plan_does_not_give_way(tmp_path: Path) -> None:
    bundle = Bundle.open(write_bundle(tmp_path))

    with pytest.warns(UserWarning, match="CUDAExecutionProvider"), pytest.raises(ProviderUnavailableError):
        open_session(bundle, PLAN, "auto", make_machine(), strict=True, check_files=True)


@pytest.mark.parametrize(
    ("provider", "expected"),
    [
        (CUDA, {"provider": CUDA, "labels": 1, "io_binding": True, "memory_limit_mb": 512}),
        (CPU, {"provider": CPU, "labels": 1, "io_binding": False, "memory_limit_mb": 512}),
    ],
)
def test_the_switches_of_a_gpu_reach_the_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, provider: ExecutionProvider, expected: dict[str, Any]
) -> None:
    bundle = Bundle.open(write_bundle(tmp_path))
    asked: list[dict[str, Any]] = []

    def open_fake(path: Path, **options: Any) -> FakeSession:  # noqa: ARG001
        asked.append(options)
        return FakeSession()

    monkeypatch.setattr(loading, "OnnxRuntimeSession", open_fake)
    plan = ProviderPlan(candidates=(provider,), rejected=(), wanted=None)
    options = GpuOptions(io_binding=True, memory_limit_mb=512)
    open_session(bundle, plan, "fp32", make_machine(), strict=True, check_files=True, gpu=options)
    assert asked == [expected]


def test_what_takes_the_lock_of_python_is_done_while_the_model_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(write_bundle(tmp_path))
    done = Event()
    monkeypatch.setattr(loading, "OnnxRuntimeSession", lambda path, **options: done.wait(10) and FakeSession())  # noqa: ARG005

    opened = open_session(bundle, CPU_ONLY, "fp32", make_machine(), strict=True, check_files=True, meanwhile=done.set)
    assert isinstance(opened.session, FakeSession)


def test_a_session_is_closed_where_something_else_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(write_bundle(tmp_path))
    session = FakeSession()
    monkeypatch.setattr(loading, "OnnxRuntimeSession", lambda path, **options: session)  # noqa: ARG005

    def fail() -> None:
        raise InputError("no such instruction")

    with pytest.raises(InputError, match="no such instruction"):
        open_session(bundle, CPU_ONLY, "fp32", make_machine(), strict=True, check_files=True, meanwhile=fail)
    with pytest.raises(EngineError, match="the session is closed"):
        session.run({})


def test_cuda_graphs_reach_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    class FakeEngineSession(FakeSession):
        profiles = (make_profile((1, 64)),)

    def open_fake(path: Path, record: EngineRecord, **options: Any) -> FakeSession:  # noqa: ARG001
        asked.append(options)
        return FakeEngineSession()

    monkeypatch.setattr(tensorrt, "open_tensorrt_session", open_fake)
    bundle = Bundle.open(write_bundle(tmp_path))
    plan = ProviderPlan(candidates=(ExecutionProvider.TENSORRT,), rejected=(), wanted=None)
    for gpu in (EVERYTHING_OFF, GpuOptions(cuda_graphs=True)):
        open_session(
            bundle, plan, "auto", make_machine(), strict=True, check_files=False, engine=make_engine_record(), gpu=gpu
        )
    assert [options["cuda_graphs"] for options in asked] == [False, True]


@pytest.mark.slow
@pytest.mark.parametrize("precision", [FP32, INT8])
def test_the_demo_model_reproduces_its_golden_scores(demo_bundle: Path, precision: Precision) -> None:
    with Reranker.load(demo_bundle, precision=precision, check_golden=True) as reranker:
        best, *_ = reranker.rank(
            "How many people live in Berlin?",
            [
                "New York City is famous for the Metropolitan Museum of Art.",
                "Berlin has a population of 3,520,031 registered inhabitants in an area of 891.82 square kilometers.",
            ],
        )

    assert best.corpus_id == 1
