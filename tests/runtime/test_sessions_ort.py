from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from crossforge.profiles import BundleError, EngineError, ExecutionProvider, MissingPackageError, ProviderUnavailableError
from crossforge.runtime.batching import Batch
from crossforge.runtime.machine import inspect_machine
from crossforge.runtime.providers import why_not
from crossforge.runtime.sessions import Session
from crossforge.runtime.sessions.ort import OnnxRuntimeSession
from support.families import make_tokenizer
from support.mean_model import MeanModel

ENCODINGS = [make_tokenizer().encode("the query", passage) for passage in ("berlin", "where people live", "")]
CUDA_RUNS_HERE = why_not(ExecutionProvider.CUDA, inspect_machine()) is None


def batch_of(*names: str) -> Batch:
    """The three encodings as the model's inputs, padded by hand."""
    longest = max(len(encoding.ids) for encoding in ENCODINGS)
    rows = {
        "input_ids": [encoding.ids for encoding in ENCODINGS],
        "attention_mask": [encoding.attention_mask for encoding in ENCODINGS],
        "token_type_ids": [encoding.type_ids for encoding in ENCODINGS],
    }
    return {name: np.asarray([row + [0] * (longest - len(row)) for row in rows[name]]) for name in names}


def save(folder: Path, model: MeanModel) -> Path:
    return model.save(folder / "model.onnx")[0]


@pytest.mark.parametrize("uses_type_ids", [True, False])
@pytest.mark.parametrize("labels", [1, 3])
def test_logits_are_those_of_the_model(tmp_path: Path, labels: int, uses_type_ids: bool) -> None:
    model = MeanModel(labels=labels, uses_type_ids=uses_type_ids)
    session: Session = OnnxRuntimeSession(save(tmp_path, model), labels=labels)
    logits = session.run(batch_of(*session.input_names))

    assert session.provider is ExecutionProvider.CPU
    assert ("token_type_ids" in session.input_names) is uses_type_ids
    assert (logits.shape, logits.dtype) == ((3, labels), np.dtype(np.float32))
    np.testing.assert_allclose(logits, model.logits(ENCODINGS), rtol=1e-5, atol=1e-6)


def test_external_data_is_found_beside_the_graph(tmp_path: Path) -> None:
    model = MeanModel()
    path, weights = model.save(tmp_path / "model.onnx", external_data=True)
    session = OnnxRuntimeSession(path)

    assert weights.stat().st_size > path.stat().st_size
    np.testing.assert_allclose(session.run(batch_of(*session.input_names)), model.logits(ENCODINGS), rtol=1e-5, atol=1e-6)


def test_threads_may_share_a_session(tmp_path: Path) -> None:
    session = OnnxRuntimeSession(save(tmp_path, MeanModel()))
    batch = batch_of(*session.input_names)
    alone = session.run(batch)
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(session.run, [batch] * 64))

    for logits in together:
        np.testing.assert_array_equal(logits, alone)


@pytest.mark.parametrize(
    ("model", "labels", "message"),
    [
        (MeanModel(has_head=False), 1, "is not a reranker with 1 label; got outputs masked ['batch', 'sequence', 4]"),
        (
            MeanModel(labels=3),
            1,
            "is not a reranker with 1 label; got outputs logits ['batch', 3]; allowed: one output [batch, 1]",
        ),
        (MeanModel(labels=1), 3, "is not a reranker with 3 labels; got outputs logits ['batch', 1]"),
    ],
)
def test_a_graph_that_is_no_such_reranker_is_refused(tmp_path: Path, model: MeanModel, labels: int, message: str) -> None:
    with pytest.raises(BundleError) as caught:
        OnnxRuntimeSession(save(tmp_path, model), labels=labels)
    assert message in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x08\x12\x04junk" * 50, None])
def test_a_file_that_is_no_model_is_named_in_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(EngineError) as caught:
        OnnxRuntimeSession(path)
    assert str(caught.value).startswith(f"ONNX Runtime cannot load {path} (")
    assert "\n" not in str(caught.value)


def test_a_batch_without_an_input_fails_in_one_line(tmp_path: Path) -> None:
    session = OnnxRuntimeSession(save(tmp_path, MeanModel()))

    with pytest.raises(EngineError, match=r"^ONNX Runtime failed on a batch \(.*token_type_ids.*\)$"):
        session.run(batch_of("input_ids", "attention_mask"))


def test_a_token_outside_the_vocabulary_is_an_engine_error(tmp_path: Path) -> None:
    session = OnnxRuntimeSession(save(tmp_path, MeanModel(vocabulary=5)))

    with pytest.raises(EngineError, match="ONNX Runtime failed on a batch"):
        session.run(batch_of(*session.input_names))


def test_a_closed_session_refuses_batches(tmp_path: Path) -> None:
    session = OnnxRuntimeSession(save(tmp_path, MeanModel()))
    session.close()

    with pytest.raises(EngineError, match="the session is closed"):
        session.run(batch_of(*session.input_names))


@pytest.mark.skipif(CUDA_RUNS_HERE, reason="CUDA runs here")
def test_a_provider_that_onnxruntime_does_not_load_is_not_replaced_in_silence(tmp_path: Path) -> None:
    path = save(tmp_path, MeanModel())

    with pytest.warns(UserWarning, match="CUDAExecutionProvider"), pytest.raises(ProviderUnavailableError) as caught:
        OnnxRuntimeSession(path, provider=ExecutionProvider.CUDA)
    assert str(caught.value) == "ONNX Runtime did not load its cuda provider; got CPUExecutionProvider; allowed: cuda"


def test_without_onnxruntime_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)

    with pytest.raises(MissingPackageError, match=r'pip install "crossforge\[cpu\]"'):
        OnnxRuntimeSession(tmp_path / "model.onnx")
