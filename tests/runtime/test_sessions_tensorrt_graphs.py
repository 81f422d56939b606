"""CUDA graphs of a lane, over memory of the host: a graph replays what was written down, and checks what it points to."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossforge.profiles import CrossforgeWarning, DeviceLostError, DeviceMemoryError, EngineError
from crossforge.runtime.sessions.tensorrt.cuda import Cuda
from crossforge.runtime.sessions.tensorrt.graphs import CAPTURE_AFTER, MOST_GRAPHS, ShapeGraphs
from crossforge.runtime.sessions.tensorrt.lane import EngineLane
from support.fake_cuda import LOST, OUT_OF_MEMORY, FakeCudart
from support.lanes import batch_of, expected, make_lane


def run(lane: EngineLane, rows: int, length: int, times: int = 1, seed: int = 0) -> None:
    """Run a shape, each time with other ids, and check each answer."""
    for time in range(times):
        batch = batch_of(rows, length, seed=seed + time)
        np.testing.assert_array_equal(lane.execute(0 if length <= 16 else 1, batch), expected(batch))


def test_a_shape_is_recorded_when_it_has_come_often_and_replayed_from_then_on() -> None:
    lane, cudart, _ = make_lane(cuda_graphs=True)
    run(lane, 2, 5, times=CAPTURE_AFTER - 1)
    assert cudart.launchable == {}
    run(lane, 2, 5)
    assert (len(cudart.launchable), cudart.launches) == (1, [])
    run(lane, 2, 5, times=3)
    assert len(cudart.launches) == 3


def test_nothing_is_recorded_unasked() -> None:
    lane, cudart, _ = make_lane()
    run(lane, 2, 5, times=CAPTURE_AFTER + 2)
    assert (cudart.launchable, cudart.launches) == ({}, [])


@given(st.lists(st.tuples(st.integers(1, 3), st.sampled_from([1, 2, 16, 17, 32])), min_size=1, max_size=80))
def test_batches_of_any_shapes_are_answered_one_after_another(shapes: list[tuple[int, int]]) -> None:
    lane, cudart, _ = make_lane(cuda_graphs=True)
    for i, (rows, length) in enumerate(shapes):
        run(lane, rows, length, seed=i)
    lane.close()
    assert (cudart.blocks, cudart.streams, cudart.graphs, cudart.launchable) == ({}, set(), {}, {})


def test_a_graph_has_a_context_of_its_own() -> None:
    lane, _, engine = make_lane(cuda_graphs=True)
    run(lane, 2, 5, times=CAPTURE_AFTER)
    run(lane, 3, 6)
    run(lane, 2, 5)
    assert [context.recorded for context in engine.contexts] == [False, True]


def test_graphs_are_dropped_when_the_scratch_memory_that_they_point_to_moves() -> None:
    lane, cudart, _ = make_lane(cuda_graphs=True, profile_bytes=0)  # so that scratch grows batch by batch
    run(lane, 2, 5, times=CAPTURE_AFTER + 1)
    run(lane, 8, 16)
    assert cudart.launchable == {}
    run(lane, 2, 5, times=CAPTURE_AFTER + 1)
    assert len(cudart.launches) == 2


def test_the_graph_that_was_not_used_for_longest_gives_way() -> None:
    cudart = FakeCudart()
    stream = cudart.cudaStreamCreateWithFlags(1)[1]
    graphs = ShapeGraphs(Cuda(cudart), stream, capture_after=1, most=2)

    def record(length: int) -> None:
        assert graphs.count((0, 1, length))
        graphs.record((0, 1, length), lambda: None, lambda _: None)

    record(1)
    record(2)
    assert graphs.launch((0, 1, 1))
    record(3)
    assert graphs.keys == ((0, 1, 1), (0, 1, 3))
    assert not graphs.launch((0, 1, 2))
    assert len(cudart.launchable) == 2


def test_a_lane_holds_no_more_graphs_than_it_may() -> None:
    lane, cudart, _ = make_lane(cuda_graphs=True)
    for length in range(1, 17):
        for rows in (1, 2):
            run(lane, rows, length, times=CAPTURE_AFTER)
    assert len(cudart.launchable) == MOST_GRAPHS


# What cannot be recorded


@pytest.mark.parametrize(
    ("refuse", "fail_in"),
    [
        ("recording", {}),
        ("", {"cudaStreamBeginCapture": 900}),
        ("", {"cudaStreamEndCapture": 901}),
        ("", {"cudaGraphInstantiate": 1}),
        ("", {"cudaGraphInstantiate": OUT_OF_MEMORY}),
    ],
)
def test_what_cannot_be_recorded_is_said_once_and_runs_without(refuse: str, fail_in: dict[str, int]) -> None:
    lane, cudart, engine = make_lane(FakeCudart(fail_in=fail_in), cuda_graphs=True, refuse=refuse)
    with pytest.warns(CrossforgeWarning, match="a batch of 2 x 5 cannot become a CUDA graph, so batches run without one"):
        run(lane, 2, 5, times=CAPTURE_AFTER)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(lane, 2, 5, times=3)
        run(lane, 3, 7, times=CAPTURE_AFTER)
    assert (cudart.launchable, cudart.graphs, cudart.recording) == ({}, {}, {})
    assert len(engine.contexts) == 2  # the one that runs, and the one that could not be recorded
    lane.close()
    assert (cudart.blocks, cudart.streams) == ({}, set())


def test_without_memory_for_a_second_context_batches_run_without_graphs() -> None:
    lane, _, _ = make_lane(cuda_graphs=True, most_contexts=1)
    with pytest.warns(CrossforgeWarning, match="could not create an execution context"):
        run(lane, 2, 5, times=CAPTURE_AFTER)
    run(lane, 2, 5)


def test_a_full_memory_drops_the_graphs_and_leaves_the_lane_usable() -> None:
    lane, cudart, _ = make_lane(FakeCudart(memory_bytes=2500), cuda_graphs=True, profile_bytes=50_000)
    run(lane, 1, 5, times=CAPTURE_AFTER + 1)
    assert len(cudart.launchable) == 1
    with pytest.raises(DeviceMemoryError):
        lane.execute(0, batch_of(8, 16))
    assert cudart.launchable == {}
    run(lane, 1, 5, times=CAPTURE_AFTER + 1)


def test_a_device_that_is_lost_while_recording_is_no_refusal() -> None:
    lane, cudart, _ = make_lane(FakeCudart(fail_in={"cudaStreamBeginCapture": LOST}), cuda_graphs=True)
    run(lane, 2, 5, times=CAPTURE_AFTER - 1)
    with pytest.raises(DeviceLostError):
        run(lane, 2, 5)
    cudart.fail_with = LOST
    lane.close()


def test_a_device_that_is_lost_in_a_replay_is_a_lost_device() -> None:
    lane, cudart, _ = make_lane(cuda_graphs=True)
    run(lane, 2, 5, times=CAPTURE_AFTER)
    cudart.fail_with = LOST
    with pytest.raises(DeviceLostError, match="cudaGraphLaunch"):
        lane.execute(0, batch_of(2, 5))
    lane.close()


# TensorRT for RTX


def test_an_engine_of_tensorrt_for_rtx_records_by_itself() -> None:
    lane, cudart, engine = make_lane(cuda_graphs=True, records_graphs=True)
    run(lane, 2, 5, times=CAPTURE_AFTER + 1)
    assert cudart.launchable == {}
    (context,) = engine.contexts
    assert context.config is not None
    assert context.config.cuda_graph_strategy == "whole graph"


def test_an_engine_of_tensorrt_for_rtx_records_nothing_unasked() -> None:
    lane, _, engine = make_lane(records_graphs=True)
    run(lane, 2, 5)
    assert engine.contexts[0].config is None


def test_a_setting_that_is_not_taken_is_an_error() -> None:
    lane, _, _ = make_lane(cuda_graphs=True, records_graphs=True, refuse="graphs")
    with pytest.raises(EngineError, match="refused CUDA graphs"):
        lane.execute(0, batch_of(1, 1))


def test_the_installed_tensorrt_for_rtx_has_what_is_asked_of_it() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason='TensorRT for RTX is not installed: pip install "crossforge[rtx]"')
    assert trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE != trt.CudaGraphStrategy.DISABLED
    assert isinstance(trt.IRuntimeConfig.cuda_graph_strategy, property)
    assert callable(trt.IRuntimeConfig.set_execution_context_allocation_strategy)
    assert callable(trt.ICudaEngine.create_runtime_config)
    assert trt.ExecutionContextAllocationStrategy.USER_MANAGED is not None


def test_the_installed_cuda_bindings_have_what_is_asked_of_them() -> None:
    cudart = pytest.importorskip(
        "cuda.bindings.runtime", reason='cuda-bindings is not installed: pip install "crossforge[rtx]"'
    )
    for name in (
        "StreamBeginCapture",
        "StreamEndCapture",
        "GraphInstantiate",
        "GraphLaunch",
        "GraphDestroy",
        "GraphExecDestroy",
    ):
        assert callable(getattr(cudart, f"cuda{name}"))
    assert int(cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal) == 1
