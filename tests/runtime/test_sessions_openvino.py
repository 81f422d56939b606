from __future__ import annotations

import sys
from collections import UserDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest

from crossforge.profiles import (
    BundleError,
    DeploymentProfile,
    EngineError,
    ExecutionProvider,
    MissingPackageError,
    Precision,
    ProviderUnavailableError,
)
from crossforge.runtime import Reranker
from crossforge.runtime.batching import Batch
from crossforge.runtime.bundle import Bundle
from crossforge.runtime.doctor import diagnose
from crossforge.runtime.profiling.settings import QualityLimits
from crossforge.runtime.profiling.space import find_space
from crossforge.runtime.providers import select_providers, why_not
from crossforge.runtime.sessions import Session
from crossforge.runtime.sessions.openvino import OpenVinoSession, compile_properties
from crossforge.runtime.sessions.ort import OnnxRuntimeSession
from support.builders import make_machine, write_bundle
from support.families import make_tokenizer
from support.mean_model import MeanModel
from support.sessions import WAIT_S

OPENVINO = ExecutionProvider.OPENVINO
INSTALLED = make_machine(openvino_packages=("openvino 2026.4.1",))
ENCODINGS = [make_tokenizer().encode("the query", passage) for passage in ("berlin", "where people live", "")]
QUERY, PASSAGES = "where is the city", ["berlin", "a passage", "people live in the city"]


@pytest.fixture
def openvino() -> None:
    """Skips where OpenVINO is not installed."""
    pytest.importorskip("openvino", reason='OpenVINO is not installed: pip install "crossforge[openvino]"')


def batch_of(*names: str) -> Batch:
    longest = max(len(encoding.ids) for encoding in ENCODINGS)
    rows = {
        "input_ids": [encoding.ids for encoding in ENCODINGS],
        "attention_mask": [encoding.attention_mask for encoding in ENCODINGS],
        "token_type_ids": [encoding.type_ids for encoding in ENCODINGS],
    }
    return {name: np.asarray([row + [0] * (longest - len(row)) for row in rows[name]]) for name in names}


def save(folder: Path, model: MeanModel) -> Path:
    return model.save(folder / "model.onnx")[0]


@pytest.mark.usefixtures("openvino")
@pytest.mark.parametrize("uses_type_ids", [True, False])
@pytest.mark.parametrize("labels", [1, 3])
def test_logits_are_those_of_the_model(tmp_path: Path, labels: int, uses_type_ids: bool) -> None:
    model = MeanModel(labels=labels, uses_type_ids=uses_type_ids)
    session: Session = OpenVinoSession(save(tmp_path, model), labels=labels)
    logits = session.run(batch_of(*session.input_names))

    assert session.provider is OPENVINO
    assert ("token_type_ids" in session.input_names) is uses_type_ids
    assert (logits.shape, logits.dtype) == ((3, labels), np.dtype(np.float32))
    np.testing.assert_allclose(logits, model.logits(ENCODINGS), rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("openvino")
def test_more_threads_than_streams_may_share_a_session(tmp_path: Path) -> None:
    session = OpenVinoSession(save(tmp_path, MeanModel()), streams=2)
    batch = batch_of(*session.input_names)
    alone = session.run(batch)
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(session.run, [batch] * 64))

    for logits in together:
        np.testing.assert_array_equal(logits, alone)


class HeldBatch(UserDict[str, Any]):
    """A batch that whoever runs it waits to read until it is let go."""

    def __init__(self, batch: Batch) -> None:
        super().__init__(batch)
        self.taken, self.let_go = Event(), Event()

    def __iter__(self) -> Iterator[str]:
        self.taken.set()
        self.let_go.wait()
        return super().__iter__()


@pytest.mark.usefixtures("openvino")
def test_a_batch_that_waits_for_a_request_ends_when_the_session_is_closed(tmp_path: Path) -> None:
    session = OpenVinoSession(save(tmp_path, MeanModel()), streams=1)
    batch = batch_of(*session.input_names)
    held = HeldBatch(batch)
    runs = [Thread(target=session.run, args=(rows,), daemon=True) for rows in (held, batch)]
    runs[0].start()
    held.taken.wait()
    runs[1].start()
    while sys._current_frames()[runs[1].ident or 0].f_code is not OpenVinoSession.run.__code__:
        pass  # not yet where it waits for the only request
    session.close()
    held.let_go.set()
    for run in runs:
        run.join(WAIT_S)
        assert not run.is_alive()
    with pytest.raises(EngineError, match="closed"):
        session.run(batch)


@pytest.mark.usefixtures("openvino")
def test_an_answer_stays_when_the_next_batch_runs(tmp_path: Path) -> None:
    session = OpenVinoSession(save(tmp_path, MeanModel()))
    batch = batch_of(*session.input_names)
    first = session.run(batch)
    kept = first.copy()
    session.run({name: ids[::-1].copy() for name, ids in batch.items()})

    np.testing.assert_array_equal(first, kept)


@pytest.mark.usefixtures("openvino")
@pytest.mark.parametrize(
    ("model", "labels", "message"),
    [
        (
            MeanModel(has_head=False),
            1,
            "with 1 label; got outputs [?,?,4]; allowed: one output [batch, 1]",
        ),
        (MeanModel(labels=1), 3, "is not a reranker with 3 labels; got outputs [?,1]"),
    ],
)
def test_a_graph_that_is_no_such_reranker_is_refused(tmp_path: Path, model: MeanModel, labels: int, message: str) -> None:
    with pytest.raises(BundleError) as caught:
        OpenVinoSession(save(tmp_path, model), labels=labels)
    assert message in str(caught.value)


@pytest.mark.usefixtures("openvino")
@pytest.mark.parametrize("content", [b"", b"not a model", None])
def test_a_file_that_is_no_model_is_named_in_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(EngineError) as caught:
        OpenVinoSession(path)
    assert str(caught.value).startswith(f"OpenVINO cannot load {path} (")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("openvino")
def test_a_closed_session_refuses_batches(tmp_path: Path) -> None:
    session = OpenVinoSession(save(tmp_path, MeanModel()))
    session.close()

    with pytest.raises(EngineError, match="the session is closed"):
        session.run(batch_of(*session.input_names))


@pytest.mark.usefixtures("openvino")
def test_a_bundle_scores_the_same_on_openvino_as_on_onnxruntime(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path)
    with Reranker.load(bundle, provider="openvino", strict=True, check_golden=True) as reranker:
        scores = reranker.score(QUERY, PASSAGES)
        assert (reranker.session.provider, reranker.precision) == (OPENVINO, Precision.FP32)
    with Reranker.load(bundle, provider="cpu") as reranker:
        assert isinstance(reranker.session, OnnxRuntimeSession)
        np.testing.assert_allclose(scores, reranker.score(QUERY, PASSAGES), atol=1e-4)


@pytest.mark.usefixtures("openvino")
def test_a_deployment_profile_may_name_it(tmp_path: Path) -> None:
    deployment = DeploymentProfile(providers=(OPENVINO,), workers=3)
    with Reranker.load(write_bundle(tmp_path), deployment=deployment, strict=True) as reranker:
        assert (reranker.session.provider, reranker.workers) == (OPENVINO, 3)
        assert len(reranker.rank(QUERY, PASSAGES * 30)) == 90


def test_without_openvino_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)

    with pytest.raises(MissingPackageError, match=r'pip install "crossforge\[openvino\]"'):
        OpenVinoSession(tmp_path / "model.onnx")


def test_a_machine_without_openvino_runs_on_and_says_why() -> None:
    reason = 'OpenVINO is not installed: pip install "crossforge[openvino]"'
    plan = select_providers("openvino", make_machine())

    assert why_not(OPENVINO, INSTALLED) is None
    assert (plan.chosen, plan.is_fallback) == (ExecutionProvider.CPU, True)
    assert plan.explain() == f"cpu (not openvino: {reason})"
    with pytest.raises(ProviderUnavailableError, match="OpenVINO is not installed"):
        select_providers("openvino", make_machine(), strict=True)
    states = {state.name: state for state in diagnose(make_machine()).providers}
    assert (states[OPENVINO].available, states[OPENVINO].reason) == (False, reason)


def test_auto_does_not_take_it_unmeasured() -> None:
    assert OPENVINO not in select_providers("auto", INSTALLED).candidates


def test_every_property_that_changes_a_score_is_named() -> None:
    plain = compile_properties(Precision.FP32, streams=2)
    assert (plain["INFERENCE_PRECISION_HINT"], plain["DYNAMIC_QUANTIZATION_GROUP_SIZE"]) == ("f32", 0)
    assert compile_properties(Precision.BF16_OPENVINO, streams=2)["INFERENCE_PRECISION_HINT"] == "bf16"
    assert compile_properties(Precision.INT8_DYNAMIC_OPENVINO, streams=2)["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == 128


def test_tune_searches_it_where_it_is_installed(tmp_path: Path) -> None:
    bundle = Bundle.open(write_bundle(tmp_path, precisions=(Precision.FP32, Precision.INT8, Precision.INT8_OPENVINO)))
    found = find_space(bundle, INSTALLED, QualityLimits())
    without = find_space(bundle, make_machine(), QualityLimits())

    assert {s.precision for s in found.settings if s.provider is OPENVINO} == {Precision.FP32, Precision.INT8_OPENVINO}
    assert {s.precision for s in found.settings if s.provider is ExecutionProvider.CPU} == {Precision.FP32, Precision.INT8}
    assert found.default.provider is ExecutionProvider.CPU
    assert OPENVINO not in {s.provider for s in without.settings}
    assert ("openvino", 'OpenVINO is not installed: pip install "crossforge[openvino]"') in [
        (item.what, item.why) for item in without.skipped
    ]
