"""The cost model: batches measured over a grid of shapes, and the three terms fitted to them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from statistics import median

import numpy as np
from numpy.typing import NDArray

from crossforge.profiles import CostModel, InputError
from crossforge.runtime.sessions import Session

Clock = Callable[[], float]
"""Seconds, as ``time.perf_counter`` counts them."""
Shape = tuple[int, int]
"""Rows of a batch, and the tokens of each."""
_LENGTHS = (16, 32, 64, 128, 256, 512)
_HELD_OUT_EVERY = 4
_FEWEST_SHAPES = 8
"""Two are held out then, which leaves six for three terms."""


@dataclass(frozen=True, kw_only=True)
class CostSample:
    """One measured batch."""

    batch: int
    sequence: int
    ms: float


@dataclass(frozen=True, kw_only=True)
class FittedCost:
    """A cost model, and how far it is off where it has not looked."""

    model: CostModel
    """Fitted to all samples."""
    held_out_median_error: float
    """Median of |predicted / measured - 1| over shapes that a fit was not given: 0.1 is 10 %."""
    shapes: int
    """Shapes that were measured."""


def shape_grid(*, budget_tokens: int, max_length: int) -> list[Shape]:
    """The shapes to measure: lengths by factors of two and quarters of the longest, each with 1, 2, 4, ... rows.

    Args:
        budget_tokens: Largest ``batch x sequence``; a single row may be longer.
        max_length: Tokens of the longest pair.
    """
    shapes = set()
    quarters = {max(1, max_length * k // 4) for k in (1, 2, 3, 4)}
    for length in quarters | {length for length in _LENGTHS if length < max_length}:
        most = max(1, budget_tokens // length)
        shapes |= {(most, length), *((1 << k, length) for k in range(most.bit_length()))}
    return sorted(shapes, key=lambda shape: (shape[1], shape[0]))


def measure_costs(
    run: Callable[[Shape], object],
    shapes: Sequence[Shape],
    *,
    rounds: int,
    budget_s: float,
    clock: Clock = time.perf_counter,
) -> list[CostSample]:
    """Measure shapes in turns, so that drift hits all alike.

    Args:
        run: Runs one batch of a shape on every worker at once.
        shapes: What to run.
        rounds: Samples of each shape, after one that does not count.
        budget_s: Seconds after which no further round starts; one round is always run.
        clock: Counts seconds.

    Returns:
        The median of each shape.
    """
    samples: dict[Shape, list[float]] = {shape: [] for shape in shapes}
    started = clock()
    for shape in shapes:
        run(shape)
    for done in range(rounds):
        if done and clock() - started > budget_s:
            break
        for shape, times in samples.items():
            start = clock()
            run(shape)
            times.append(clock() - start)
    return [
        CostSample(batch=batch, sequence=sequence, ms=median(times) * 1e3) for (batch, sequence), times in samples.items()
    ]


def batch_runner(
    session: Session, *, row: Mapping[str, NDArray[np.int64]], workers: int, executor: ThreadPoolExecutor | None
) -> Callable[[Shape], object]:
    """What :func:`measure_costs` runs: the same batch on every worker at once, as a busy service has it.

    Args:
        session: Runs the batches.
        row: One pair of the greatest length: int64 [1, sequence] for each input.
        workers: Batches that run at the same time, in ``executor``.
        executor: Has a thread for each worker; None runs on the calling thread.
    """

    def run(shape: Shape) -> object:
        count, length = shape
        batch = {name: np.repeat(ids[:, :length], count, axis=0) for name, ids in row.items()}
        if executor is None:
            return session.run(batch)
        return list(executor.map(lambda _: session.run(batch), range(workers)))

    return run


def fit_cost(samples: Sequence[CostSample]) -> FittedCost:
    """Fit the three terms by least squares of the relative error, none of them below zero.

    Every fourth shape, in order of tokens, is held out of a first fit, which is judged on those; the model that is returned
    is fitted to all.

    Args:
        samples: Of eight shapes or more; several of one shape may differ.

    Raises:
        InputError: There are too few shapes, or a time is not above zero.
    """
    shapes = sorted({(sample.batch, sample.sequence) for sample in samples}, key=lambda shape: (shape[0] * shape[1], shape))
    if len(shapes) < _FEWEST_SHAPES:
        raise InputError("too few shapes for a cost model", got=len(shapes), allowed=f"{_FEWEST_SHAPES} or more")
    if any(not sample.ms > 0 for sample in samples):
        raise InputError("a measured time is not above zero", got=f"{min(sample.ms for sample in samples)} ms")
    held_out = set(shapes[_HELD_OUT_EVERY // 2 :: _HELD_OUT_EVERY])
    judged = [sample for sample in samples if (sample.batch, sample.sequence) in held_out]
    first = _fit([sample for sample in samples if (sample.batch, sample.sequence) not in held_out])
    errors = [abs(first.predict_ms(sample.batch, sample.sequence) / sample.ms - 1) for sample in judged]
    return FittedCost(model=_fit(samples), held_out_median_error=median(errors), shapes=len(shapes))


def _fit(samples: Sequence[CostSample]) -> CostModel:
    """Non-negative least squares with three unknowns: the best of the fits to each subset of terms that has no negative."""
    terms = np.asarray([(1.0, s.batch * s.sequence, s.batch * s.sequence**2) for s in samples])
    relative = terms / np.asarray([sample.ms for sample in samples])[:, None]
    ones = np.ones(len(samples))
    best, least = np.zeros(3), np.inf
    for count in (1, 2, 3):
        for kept in map(list, combinations(range(3), count)):
            if kept == [0]:  # every batch at one price is no model of batches
                continue
            scale = np.abs(relative[:, kept]).max(axis=0)
            solution = np.linalg.lstsq(relative[:, kept] / scale, ones, rcond=None)[0] / scale
            residual = float(((relative[:, kept] @ solution - ones) ** 2).sum())
            if (solution >= 0).all() and residual < least:
                best, least = np.zeros(3), residual
                best[kept] = solution
    fixed, linear, squared = best.tolist()
    return CostModel(fixed_ms=fixed, per_token_ms=linear, per_token_squared_ms=squared)
