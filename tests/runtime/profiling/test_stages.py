from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossforge.runtime.profiling.report import STAGES
from crossforge.runtime.profiling.stages import Span, StageRecorder, share_time
from crossforge.runtime.timing import StageName
from support.builders import fake_reranker
from support.slow_sessions import FakeClock, SlowSession
from support.strategies import no_deadline

spans = st.lists(
    st.builds(
        lambda stage, start, length: Span(stage, start, start + length),
        st.sampled_from(STAGES),
        st.integers(0, 1000),
        st.integers(0, 300),
    ),
    max_size=20,
)


def test_a_report_has_the_stages_that_a_reranker_tells_of() -> None:
    assert get_args(StageName) == STAGES


def test_one_after_another_they_take_what_they_took() -> None:
    shares = share_time([Span("plan", 0, 10), Span("compute", 15, 40), Span("compute", 50, 60)])
    assert (shares["plan"], shares["compute"]) == (10, 35)


def test_side_by_side_they_share_the_time() -> None:
    shares = share_time([Span("compute", 0, 100), Span("collate", 50, 100)])
    assert (shares["compute"], shares["collate"]) == (75, 25)


@given(spans)
@no_deadline
def test_they_add_up_to_the_time_in_which_anything_went_on(values: list[Span]) -> None:
    busy = {moment for span in values for moment in range(span.start, span.end)}
    assert sum(share_time(values).values()) == pytest.approx(len(busy))


@pytest.mark.parametrize("workers", [1, 3])
def test_a_call_tells_all_of_its_stages(workers: int) -> None:
    clock = FakeClock()
    recorder = StageRecorder(clock)
    session = SlowSession(clock, [], "fp32", token_ns=1000)
    with fake_reranker(session, budget_tokens=12, workers=workers, timed=recorder) as reranker:
        reranker.rank("query", ["the city", "berlin", "where people live"])
    assert len(session.batches) > 1
    told = {span.stage for span in recorder._spans}
    times = recorder.take_ms()

    assert told == set(STAGES)
    assert times["compute"] > 0
    assert times["tokenize"] == times["postprocess"] == 0  # nothing but the session spends this clock's time
    assert recorder.take_ms() == dict.fromkeys(STAGES, 0.0)


def test_with_one_worker_computing_takes_what_the_session_took() -> None:
    clock = FakeClock()
    recorder = StageRecorder(clock)
    with fake_reranker(SlowSession(clock, [], "fp32"), budget_tokens=12, timed=recorder) as reranker:
        reranker.rank("query", ["the city", "berlin"])

    assert recorder.take_ms()["compute"] == pytest.approx(clock.now / 1e6)
