"""IO binding, on the CPU provider, where the same calls go the same way: not a bit may differ from an ordinary run."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import onnx
import onnxruntime
import pytest

from crossforge.profiles import EngineError
from crossforge.runtime.batching import Batch
from crossforge.runtime.sessions.ort import OnnxRuntimeSession
from crossforge.runtime.sessions.ort_binding import BoundRuns
from support.mean_model import MeanModel

NAMES = ("input_ids", "attention_mask", "token_type_ids")


def batch_of(rows: int, length: int, seed: int = 0) -> Batch:
    generator = np.random.default_rng([seed, rows, length])
    mask = (np.arange(length) < generator.integers(1, length + 1, (rows, 1))).astype(np.int64)
    ids = generator.integers(0, 20, (rows, length)) * mask
    return dict(zip(NAMES, (ids, mask, np.zeros_like(mask)), strict=True))


@pytest.fixture(params=[1, 3])
def labels(request: pytest.FixtureRequest) -> int:
    count: int = request.param
    return count


@pytest.fixture
def model(tmp_path: Path, labels: int) -> Path:
    return MeanModel(labels=labels).save(tmp_path / "model.onnx")[0]


@pytest.fixture
def plain(model: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])


@pytest.fixture
def bound(plain: onnxruntime.InferenceSession, labels: int) -> BoundRuns:
    return BoundRuns(plain, labels)


def test_logits_are_bit_for_bit_those_of_an_ordinary_run(bound: BoundRuns, plain: onnxruntime.InferenceSession) -> None:
    for rows, length in ((1, 1), (7, 19), (2, 19), (7, 3), (1, 64)):
        batch = batch_of(rows, length)
        logits = bound.run(batch)
        assert logits.dtype == np.float32
        np.testing.assert_array_equal(logits, plain.run(None, batch)[0])
    assert bound.free == 1  # one binding served all of them


def test_an_array_that_is_a_view_is_read_as_it_looks(bound: BoundRuns, plain: onnxruntime.InferenceSession) -> None:
    whole = batch_of(6, 10)
    part = {name: ids[1::2, :7] for name, ids in whole.items()}
    np.testing.assert_array_equal(bound.run(part), plain.run(None, part)[0])


def test_an_answer_stays_when_the_next_batch_runs(bound: BoundRuns) -> None:
    first = bound.run(batch_of(3, 5))
    kept = first.copy()
    bound.run(batch_of(3, 5, seed=1))
    np.testing.assert_array_equal(first, kept)


def test_threads_at_the_same_time_have_a_binding_each(bound: BoundRuns, plain: onnxruntime.InferenceSession) -> None:
    together = Barrier(4)

    def work(seed: int) -> bool:
        together.wait(timeout=20)
        batches = [batch_of(1 + seed, 5 + i % 7, seed=seed) for i in range(40)]
        return all(np.array_equal(bound.run(batch), plain.run(None, batch)[0]) for batch in batches)

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(work, range(4)))
    assert 1 <= bound.free <= 4


def test_a_batch_without_an_input_fails_and_does_not_take_the_one_before(bound: BoundRuns) -> None:
    batch = batch_of(2, 5)
    expected = bound.run(batch)
    with pytest.raises(Exception, match="token_type_ids"):
        bound.run({name: batch[name] for name in NAMES[:2]})
    np.testing.assert_array_equal(bound.run(batch), expected)
    assert bound.free == 1


def test_a_float16_output_comes_as_float32() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (int64[b, s] input_ids) => (float16[b, 1] logits)'
        "<int64[1] one = {1}> { half = Cast <to = 10> (input_ids)  logits = ReduceSum (half, one) }"
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    batch = {"input_ids": np.array([[1, 2], [3, 4]])}
    logits = BoundRuns(session, 1).run(batch)
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits, [[3], [7]])


# In a session


def test_a_session_with_io_binding_answers_as_one_without(model: Path, labels: int) -> None:
    with_binding = OnnxRuntimeSession(model, labels=labels, io_binding=True)
    without = OnnxRuntimeSession(model, labels=labels)
    batch = batch_of(9, 12)
    np.testing.assert_array_equal(with_binding.run(batch), without.run(batch))


def test_a_failure_under_io_binding_is_an_engine_error(model: Path, labels: int) -> None:
    session = OnnxRuntimeSession(model, labels=labels, io_binding=True)
    with pytest.raises(EngineError, match=r"^ONNX Runtime failed on a batch \("):
        session.run({"input_ids": batch_of(2, 5)["input_ids"]})


def test_a_closed_session_holds_no_binding_that_keeps_the_model(model: Path, labels: int) -> None:
    session = OnnxRuntimeSession(model, labels=labels, io_binding=True)
    session.run(batch_of(2, 5))
    engine = weakref.ref(session._session)
    session.close()
    gc.collect()
    assert engine() is None
    with pytest.raises(EngineError, match="the session is closed"):
        session.run(batch_of(2, 5))
