"""The switches of a deployment profile's ``[gpu]``, which only a GPU can show to change nothing but speed and memory."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import numpy as np
import pytest

from crossforge.export.tensorrt.build import build_engines
from crossforge.profiles import CrossforgeWarning, DeploymentProfile, ExecutionProvider, GpuOptions, Precision
from crossforge.runtime import Reranker
from crossforge.runtime.bundle import Bundle
from crossforge.runtime.sessions.tensorrt.graphs import CAPTURE_AFTER
from support.gpu import PAIRS, needs_a_gpu, skip_without

pytestmark = needs_a_gpu
CUDA, TENSORRT = ExecutionProvider.CUDA, ExecutionProvider.TENSORRT


def load(bundle: Path, provider: ExecutionProvider, precision: Precision = Precision.FP16, **options: object) -> Reranker:
    deployment = DeploymentProfile(gpu=GpuOptions(**options))  # type: ignore[arg-type]
    return Reranker.load(bundle, provider=provider, precision=precision, strict=True, deployment=deployment)


def batch_of(reranker: Reranker, rows: int, length: int, seed: int = 0) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(seed).integers(1000, 20_000, (rows, length))
    batch = {name: np.ones((rows, length), np.int64) for name in reranker.session.input_names}
    return {**batch, "input_ids": ids}


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_io_binding_changes_no_bit(bundle: Path, precision: Precision) -> None:
    skip_without(CUDA)
    with load(bundle, CUDA, precision, io_binding=True) as bound, load(bundle, CUDA, precision) as plain:
        np.testing.assert_array_equal(bound.score_pairs(PAIRS).logits, plain.score_pairs(PAIRS).logits)


@pytest.mark.parametrize("io_binding", [False, True])
def test_under_a_memory_limit_a_batch_is_halved_until_it_fits(bundle: Path, io_binding: bool) -> None:
    skip_without(CUDA)
    with (
        load(bundle, CUDA, Precision.FP32, memory_limit_mb=256, io_binding=io_binding) as limited,
        load(bundle, CUDA, Precision.FP32) as plain,
    ):
        batch = batch_of(plain, 128, 512)  # its attention alone takes 1.5 GB
        np.testing.assert_allclose(limited.session.run(batch), plain.session.run(batch), atol=1e-3)


def test_the_variant_for_cuda_was_judged_on_cuda_and_is_what_auto_takes(bundle: Path) -> None:
    skip_without(CUDA)
    variant = Bundle.open(bundle).manifest.variants[Precision.FP16_CUDA]
    assert variant.quantization["judged_on"] == "cuda"
    with Reranker.load(bundle, provider="cuda", strict=True) as reranker:
        assert reranker.precision is Precision.FP16_CUDA


def test_a_replayed_graph_answers_as_the_run_that_it_was_made_of(bundle: Path) -> None:
    skip_without(TENSORRT)
    build_engines(bundle)
    with load(bundle, TENSORRT, cuda_graphs=True) as graphs, load(bundle, TENSORRT) as plain, warnings.catch_warnings():
        warnings.simplefilter("error", CrossforgeWarning)  # a refusal to record is one
        for shape in ((1, 32), (8, 64), (1, 32), (3, 17)):
            for time in range(CAPTURE_AFTER + 2):
                batch = batch_of(plain, *shape, seed=time)
                np.testing.assert_allclose(graphs.session.run(batch), plain.session.run(batch), atol=1e-3)


def test_closing_gives_the_memory_of_graphs_back(bundle: Path) -> None:
    skip_without(TENSORRT)
    if importlib.util.find_spec("cuda") is None:
        pytest.skip("cuda-bindings is not installed")
    from cuda.bindings import runtime as cudart

    build_engines(bundle)
    free = []
    for _ in range(4):
        with load(bundle, TENSORRT, cuda_graphs=True) as reranker:
            for length in (16, 32, 48):
                for _ in range(CAPTURE_AFTER + 1):
                    reranker.session.run(batch_of(reranker, 2, length))
        free.append(cudart.cudaMemGetInfo()[1])
    assert free[-1] >= free[1] - 2**20  # the first load keeps what CUDA itself needs
