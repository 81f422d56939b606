"""Which profile runs a batch, what is split, what is refused: the logic above the GPU, over lanes that need none."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from crossforge.profiles import (
    DeviceLostError,
    DeviceMemoryError,
    EngineError,
    ExecutionProvider,
    InputError,
    OptimizationProfile,
    ShapeRange,
)
from crossforge.runtime.sessions.tensorrt import TensorRTSession

Batch = Mapping[str, NDArray[np.int64]]


def profile(longest: int, most: int, shortest: int = 1) -> OptimizationProfile:
    return OptimizationProfile(
        batch_size=ShapeRange(min=1, opt=most, max=most),
        sequence_length=ShapeRange(min=shortest, opt=longest, max=longest),
    )


PROFILES = (profile(64, 8, shortest=17), profile(16, 32))


@dataclass
class FakeLane:
    """Answers each pair with the sum of its ids; has memory for so many tokens."""

    memory_tokens: int = 10**9
    before: Callable[[], None] = lambda: None
    runs: list[tuple[int, tuple[int, int]]] = field(default_factory=list)
    tried: list[int] = field(default_factory=list)
    closed: int = 0

    def execute(self, profile: int, batch: Batch) -> NDArray[np.float32]:
        self.before()
        ids = batch["input_ids"]
        self.tried.append(ids.size)
        if ids.size > self.memory_tokens:
            raise DeviceMemoryError("the GPU has no memory left")
        self.runs.append((profile, (ids.shape[0], ids.shape[1])))
        return ids.sum(axis=1, keepdims=True).astype(np.float32)

    def close(self) -> None:
        self.closed += 1


def batch_of(rows: int, length: int) -> Batch:
    return {"input_ids": np.arange(rows * length, dtype=np.int64).reshape(rows, length)}


def expected(batch: Batch) -> NDArray[np.float32]:
    return batch["input_ids"].sum(axis=1, keepdims=True).astype(np.float32)


def session(*lanes: FakeLane) -> TensorRTSession:
    return TensorRTSession(lanes, PROFILES, ["input_ids"])


def test_a_session_says_what_it_is() -> None:
    ours = session(FakeLane())
    assert (ours.provider, ours.input_names, ours.profiles) == (ExecutionProvider.TENSORRT, ("input_ids",), PROFILES)


@pytest.mark.parametrize(("shape", "number"), [((1, 1), 1), ((32, 16), 1), ((1, 17), 0), ((8, 64), 0)])
def test_a_batch_runs_in_the_smallest_profile_that_takes_it(shape: tuple[int, int], number: int) -> None:
    lane = FakeLane()
    batch = batch_of(*shape)
    np.testing.assert_array_equal(session(lane).run(batch), expected(batch))
    assert lane.runs == [(number, shape)]


def test_a_batch_that_is_too_large_for_its_profile_is_split() -> None:
    lane = FakeLane()
    batch = batch_of(19, 40)
    np.testing.assert_array_equal(session(lane).run(batch), expected(batch))
    assert lane.runs == [(0, (8, 40)), (0, (8, 40)), (0, (3, 40))]


def test_a_length_beyond_every_profile_is_refused_and_nothing_runs() -> None:
    lane = FakeLane()
    with pytest.raises(InputError, match=r"got 65 tokens; allowed: 1-8 x 17-64, 1-32 x 1-16\. Build the engine"):
        session(lane).run(batch_of(2, 65))
    assert lane.tried == []


@given(rows=st.integers(1, 80), length=st.integers(1, 64), memory_tokens=st.integers(64, 600))
def test_whatever_the_memory_every_pair_is_answered_in_its_place(rows: int, length: int, memory_tokens: int) -> None:
    lane = FakeLane(memory_tokens=memory_tokens)
    batch = batch_of(rows, length)
    np.testing.assert_array_equal(session(lane).run(batch), expected(batch))
    for number, (size, width) in lane.runs:
        assert PROFILES[number].fits(size, width)
        assert size * width <= memory_tokens


# Memory


def test_a_batch_that_memory_has_no_room_for_is_halved_and_the_limit_remembered() -> None:
    lane = FakeLane(memory_tokens=100)
    ours = session(lane)
    batch = batch_of(8, 40)
    np.testing.assert_array_equal(ours.run(batch), expected(batch))
    assert lane.tried[:3] == [320, 160, 80]
    assert ours.most_tokens == 80
    lane.tried.clear()
    ours.run(batch_of(8, 40))
    ours.run(batch_of(32, 16))
    assert max(lane.tried) <= 80  # it asks for no more again


def test_one_pair_that_memory_has_no_room_for_is_an_error() -> None:
    with pytest.raises(DeviceMemoryError, match="no memory left"):
        session(FakeLane(memory_tokens=10)).run(batch_of(4, 20))


# A lost device, and the end


def test_a_lost_device_is_not_asked_again() -> None:
    def lose() -> None:
        raise DeviceLostError("the GPU is lost: illegal memory access")

    lane = FakeLane(before=lose)
    ours = session(lane)
    with pytest.raises(DeviceLostError, match="illegal memory access"):
        ours.run(batch_of(1, 8))
    lane.before = lambda: None
    with pytest.raises(DeviceLostError, match=r"illegal memory access\. Start a new process"):
        ours.run(batch_of(1, 8))
    assert lane.tried == []
    ours.close()
    assert lane.closed == 1


def test_closing_frees_every_lane_once() -> None:
    lanes = FakeLane(), FakeLane()
    ours = session(*lanes)
    ours.close()
    ours.close()
    assert [lane.closed for lane in lanes] == [1, 1]
    with pytest.raises(EngineError, match="the session is closed"):
        ours.run(batch_of(1, 8))


def test_closing_waits_for_a_batch_that_is_running() -> None:
    running, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        running.set()
        assert go_on.wait(10)

    lane = FakeLane(before=wait)
    ours = session(lane)
    answers: list[NDArray[np.float32]] = []
    work = threading.Thread(target=lambda: answers.append(ours.run(batch_of(2, 8))))
    work.start()
    assert running.wait(10)
    closing = threading.Thread(target=ours.close)
    closing.start()
    closing.join(0.05)
    assert closing.is_alive()
    assert lane.closed == 0
    go_on.set()
    work.join(10)
    closing.join(10)
    assert lane.closed == 1
    np.testing.assert_array_equal(answers[0], expected(batch_of(2, 8)))


def test_closing_wakes_whoever_waits_for_a_lane() -> None:
    running, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        running.set()
        assert go_on.wait(10)

    ours = session(FakeLane(before=wait))
    errors: list[EngineError] = []

    def work() -> None:
        try:
            ours.run(batch_of(1, 8))
        except EngineError as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert running.wait(10)
    closing = threading.Thread(target=ours.close)
    closing.start()
    go_on.set()
    for thread in [closing, *threads]:
        thread.join(10)
        assert not thread.is_alive()
    assert all(str(error) == "the session is closed" for error in errors)


def test_as_many_batches_run_at_once_as_there_are_lanes() -> None:
    together = threading.Barrier(2, timeout=10)
    lanes = [FakeLane(before=lambda: together.wait() and None) for _ in range(2)]
    ours = session(*lanes)
    batches = [batch_of(rows, 8) for rows in (1, 2)]
    answers: dict[int, NDArray[np.float32]] = {}

    def work(number: int) -> None:
        answers[number] = ours.run(batches[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(answers) == [0, 1]  # the barrier lets them pass only together
    for number, answer in answers.items():
        np.testing.assert_array_equal(answer, expected(batches[number]))


def test_a_failing_batch_gives_its_lane_back() -> None:
    def fail() -> None:
        raise EngineError("TensorRT refused a batch")

    lane = FakeLane(before=fail)
    ours = session(lane)
    with pytest.raises(EngineError, match="refused"):
        ours.run(batch_of(1, 8))
    lane.before = lambda: None
    np.testing.assert_array_equal(ours.run(batch_of(1, 8)), expected(batch_of(1, 8)))
