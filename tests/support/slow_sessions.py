"""Time that only a session spends: measurements without a stopwatch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from crossforge.profiles import Precision
from crossforge.runtime import FakeSession
from crossforge.runtime.profiling.measure import Contender
from crossforge.runtime.profiling.stages import StageRecorder
from support.builders import fake_reranker, make_manifest


class FakeClock:
    """Nanoseconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


class SlowSession(FakeSession):
    """Spends so many nanoseconds a padded token, times the next of some factors in turn, and keeps a diary."""

    def __init__(
        self, clock: FakeClock, diary: list[str], name: str, *, token_ns: int = 1000, factors: Sequence[float] = (1.0,)
    ) -> None:
        super().__init__()
        self._clock, self._diary, self._name = clock, diary, name
        self._token_ns, self._factors = token_ns, factors
        self._runs = 0

    def run(self, batch: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        factor = self._factors[self._runs % len(self._factors)]
        self._runs += 1
        self._clock.now += int(batch["input_ids"].size * self._token_ns * factor)
        self._diary.append(self._name)
        return super().run(batch)


def slow_contender(
    clock: FakeClock,
    diary: list[str],
    precision: Precision = Precision.FP32,
    *,
    token_ns: int = 1000,
    factors: Sequence[float] = (1.0,),
    budget_tokens: int = 10_000,
) -> Contender:
    """A contender that takes one batch a call, unless ``budget_tokens`` says otherwise."""
    recorder = StageRecorder(clock)
    session = SlowSession(clock, diary, str(precision), token_ns=token_ns, factors=factors)
    reranker = fake_reranker(session, manifest=make_manifest(), timed=recorder, budget_tokens=budget_tokens)
    return Contender(provider="cpu", precision=precision, reranker=reranker, recorder=recorder)
