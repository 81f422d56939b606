"""A lane's buffers and contexts, over memory of the host."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossforge.profiles import DeviceLostError, DeviceMemoryError, EngineError
from crossforge.runtime.sessions.tensorrt.cuda import Cuda, DeviceBuffer
from support.fake_cuda import LOST, FakeCudart
from support.lanes import batch_of, expected, make_lane


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 32)), min_size=1, max_size=8))
def test_batches_of_any_shape_are_answered_one_after_another(shapes: list[tuple[int, int]]) -> None:
    lane, _, engine = make_lane()
    for rows, length in shapes:
        batch = batch_of(rows, length)
        answer = lane.execute(0 if length <= 16 else 1, batch)
        assert answer.dtype == np.float32
        np.testing.assert_array_equal(answer, expected(batch))
    assert len(engine.contexts) == len({length <= 16 for _, length in shapes})  # one a profile, made when it is first used
    lane.close()


def test_an_answer_stays_when_the_next_batch_runs() -> None:
    lane, _, _ = make_lane()
    first = lane.execute(0, batch_of(2, 5))
    kept = first.copy()
    lane.execute(0, batch_of(2, 16))
    np.testing.assert_array_equal(first, kept)


def test_buffers_are_allocated_once_for_the_largest_shape() -> None:
    lane, cudart, _ = make_lane(profile_bytes=5000)
    lane.execute(0, batch_of(1, 1))
    at_first = list(cudart.allocations)
    assert at_first == [128 * 8, 128 * 4, 8 * 4, 5000]
    for rows, length in ((8, 16), (4, 32), (1, 1)):
        lane.execute(0 if length <= 16 else 1, batch_of(rows, length))
    assert cudart.allocations == at_first


def test_closing_frees_everything_and_may_be_repeated() -> None:
    lane, cudart, _ = make_lane()
    lane.execute(0, batch_of(8, 16))
    lane.close()
    lane.close()
    assert (cudart.blocks, cudart.streams) == ({}, set())


# Memory


def test_where_memory_is_short_scratch_is_what_the_batch_needs() -> None:
    lane, cudart, _ = make_lane(FakeCudart(memory_bytes=2500), profile_bytes=50_000)
    batch = batch_of(2, 16)
    np.testing.assert_array_equal(lane.execute(0, batch), expected(batch))
    assert cudart.allocations[-1] == 2 * 16 * 10


def test_a_batch_without_room_leaves_the_lane_usable() -> None:
    lane, _, _ = make_lane(FakeCudart(memory_bytes=2500), profile_bytes=50_000)
    with pytest.raises(DeviceMemoryError, match="no memory left"):
        lane.execute(0, batch_of(8, 16))
    batch = batch_of(1, 16)
    np.testing.assert_array_equal(lane.execute(0, batch), expected(batch))


def test_no_room_for_inputs_is_an_error_that_frees_what_was_taken() -> None:
    cudart = FakeCudart(memory_bytes=1500)
    with pytest.raises(DeviceMemoryError):
        make_lane(cudart)
    assert (cudart.blocks, cudart.streams) == ({}, set())


def test_a_context_that_cannot_be_created_is_a_lack_of_memory() -> None:
    lane, _, _ = make_lane(refuse="context")
    with pytest.raises(DeviceMemoryError, match="execution context"):
        lane.execute(0, batch_of(1, 1))


def test_a_buffer_grows_and_never_shrinks() -> None:
    cudart = FakeCudart()
    buffer = DeviceBuffer(Cuda(cudart))
    assert buffer.grow(10)
    address = buffer.address
    assert not buffer.grow(5)
    assert (buffer.address, buffer.size_bytes) == (address, 10)
    assert buffer.grow(20)
    assert cudart.allocated_bytes == 20
    buffer.free()
    assert (buffer.address, cudart.allocated_bytes) == (0, 0)


# Faults


@pytest.mark.parametrize(
    ("refuse", "words"), [("shape", r"refused the shape \[2, 5\]"), ("run", r"refused a batch of \[2, 5\]")]
)
def test_what_tensorrt_refuses_is_an_error(refuse: str, words: str) -> None:
    lane, _, _ = make_lane(refuse=refuse)
    with pytest.raises(EngineError, match=words):
        lane.execute(0, batch_of(2, 5))


def test_a_sticky_status_is_a_lost_device() -> None:
    lane, cudart, _ = make_lane()
    lane.execute(0, batch_of(2, 5))
    cudart.fail_with = LOST
    with pytest.raises(DeviceLostError, match="illegal memory access; got CUDA error 700 in cudaMemcpyAsync"):
        lane.execute(0, batch_of(2, 5))
    lane.close()  # does what it can, and does not hide the first error


def test_any_other_status_is_named() -> None:
    cudart = FakeCudart(fail_with=1)
    with pytest.raises(EngineError, match="CUDA failed; got error 1 in cudaMalloc"):
        DeviceBuffer(Cuda(cudart)).grow(1)
