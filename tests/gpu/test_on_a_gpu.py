"""What only a GPU can show: ``make test-gpu`` on a machine that has one; elsewhere each test skips and says why."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from crossforge.export.tensorrt.build import build_engines
from crossforge.export.tensorrt.options import BuildOptions
from crossforge.profiles import ExecutionProvider, Precision
from crossforge.runtime import Reranker
from crossforge.runtime.activation import Floats
from crossforge.runtime.providers import why_not
from support.gpu import MACHINE, PAIRS, agrees, needs_a_gpu, skip_without

pytestmark = needs_a_gpu


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16, Precision.FP16_CUDA])
def test_cuda_ranks_as_the_cpu_does(bundle: Path, reference: Floats, precision: Precision) -> None:
    skip_without(ExecutionProvider.CUDA)
    with Reranker.load(bundle, provider="cuda", precision=precision, strict=True, check_golden=True) as reranker:
        assert reranker.session.provider is ExecutionProvider.CUDA
        assert agrees(reranker.score_pairs(PAIRS).logits, reference, precision)


@pytest.fixture(scope="module", params=[Precision.FP16, Precision.INT8_QDQ, Precision.FP32])
def engine(request: pytest.FixtureRequest, bundle: Path) -> Iterator[Reranker]:
    skip_without(ExecutionProvider.TENSORRT)
    build_engines(bundle, BuildOptions(precision=request.param))
    with Reranker.load(bundle, provider="tensorrt", precision=request.param, strict=True) as reranker:
        yield reranker


def test_an_engine_ranks_as_the_cpu_does(engine: Reranker, reference: Floats) -> None:
    assert engine.session.provider is ExecutionProvider.TENSORRT
    assert agrees(engine.score_pairs(PAIRS).logits, reference, engine.precision)
    engine.check_golden()


def test_a_pair_scores_the_same_alone_and_in_any_batch(engine: Reranker) -> None:
    together = engine.score_pairs(PAIRS[:40]).logits
    alone = np.concatenate([engine.score_pairs([pair]).logits for pair in PAIRS[:40]])
    np.testing.assert_allclose(alone, together, atol=2e-2)  # float16 kernels differ by shape


def test_every_profile_of_an_engine_runs(engine: Reranker) -> None:
    for profile in engine.profiles:
        for rows in {profile.batch_size.min, profile.batch_size.opt}:
            shape = (rows, profile.sequence_length.max)
            batch = {name: np.ones(shape, np.int64) for name in engine.session.input_names}
            assert np.isfinite(engine.session.run(batch)).all()


def test_closing_gives_the_memory_back(bundle: Path) -> None:
    if importlib.util.find_spec("cuda") is None or why_not(ExecutionProvider.TENSORRT, MACHINE):
        pytest.skip("TensorRT or cuda-bindings is not installed")
    from cuda.bindings import runtime as cudart

    build_engines(bundle)
    free = []
    for _ in range(4):
        with Reranker.load(bundle, provider="tensorrt", strict=True) as reranker:
            reranker.score_pairs(PAIRS)
        free.append(cudart.cudaMemGetInfo()[1])
    assert free[-1] >= free[1] - 2**20  # the first load keeps what CUDA itself needs
