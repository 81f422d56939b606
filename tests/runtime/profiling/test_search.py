from __future__ import annotations

import random
from collections import Counter

import pytest

from crossforge.profiles import InputError
from crossforge.runtime.profiling.search import compare, search, survivors


class Machine:
    """Runs settings that take a known time, with noise and drift, on a clock of its own."""

    def __init__(self, times_ms: dict[str, float], *, noise: float = 0.0, drift: float = 0.0, seed: int = 1) -> None:
        self._times_ms = times_ms
        self._noise, self._drift = noise, drift
        self._random = random.Random(seed)
        self.seconds = 0.0
        self.runs: list[str] = []

    def clock(self) -> float:
        return self.seconds

    def measure(self, setting: str) -> float:
        slower = 1 + self._drift * self.seconds
        ms = self._times_ms[setting] * slower * (1 + self._noise * self._random.uniform(-1, 1))
        self.seconds += ms / 1e3
        self.runs.append(setting)
        return ms


MANY = {f"s{i}": 10.0 + 2 * i for i in range(12)}


def test_the_fastest_wins() -> None:
    machine = Machine(MANY, noise=0.05)
    ranking = search(list(reversed(MANY)), machine.measure, budget_s=100, clock=machine.clock)

    assert ranking[0].setting == "s0"
    assert {trial.setting for trial in ranking} == set(MANY)


@pytest.mark.parametrize("seed", range(10))
def test_the_winner_is_within_the_noise_of_the_fastest_though_the_machine_slows_down(seed: int) -> None:
    machine = Machine(MANY, noise=0.1, drift=0.2, seed=seed)
    ranking = search(list(MANY), machine.measure, budget_s=100, clock=machine.clock)

    assert MANY[ranking[0].setting] <= 12


def test_slow_settings_are_dropped_early() -> None:
    machine = Machine(MANY, noise=0.02)
    search(list(MANY), machine.measure, budget_s=100, clock=machine.clock)
    runs = Counter(machine.runs)

    assert runs["s11"] == 4  # a warm-up, and the first three rounds
    assert runs["s0"] > 4 * runs["s11"] / 2
    assert runs["s0"] == max(runs.values())


def test_what_is_within_noise_of_the_best_survives_whatever_its_place() -> None:
    draw = random.Random(5)
    noisy = {f"s{i}": [10 * (1 + 0.1 * draw.uniform(-1, 1)) for _ in range(8)] for i in range(6)}

    assert len(survivors({**noisy, "slow": [20.0] * 8})) >= 5
    assert "slow" not in survivors({**noisy, "slow": [20.0] * 8})


def test_without_noise_the_faster_half_survives() -> None:
    assert survivors({name: [ms] * 3 for name, ms in MANY.items()}) == [f"s{i}" for i in range(6)]


def test_every_setting_is_measured_once_before_any_is_measured_again() -> None:
    machine = Machine(MANY)
    search(list(MANY), machine.measure, budget_s=100, clock=machine.clock)

    assert machine.runs[: 2 * len(MANY)] == [name for name in MANY for _ in range(2)]


def test_the_budget_is_kept() -> None:
    machine = Machine(MANY)
    ranking = search(list(MANY), machine.measure, budget_s=1.0, clock=machine.clock)

    assert machine.seconds <= 1.0 + 2 * max(MANY.values()) / 1e3
    assert ranking[0].setting == "s0"


def test_what_there_is_no_time_for_is_left_out() -> None:
    machine = Machine({"first": 100.0, "second": 100.0, "third": 1.0})
    ranking = search(["first", "second", "third"], machine.measure, budget_s=0.25, clock=machine.clock)

    assert [trial.setting for trial in ranking] == ["first"]


@pytest.mark.parametrize(("settings", "message"), [([], "there is no setting"), (["a"], "too short to measure one setting")])
def test_nothing_to_measure_or_no_time_is_refused(settings: list[str], message: str) -> None:
    machine = Machine({"a": 5.0})
    with pytest.raises(InputError, match=message):
        search(settings, machine.measure, budget_s=0.0, clock=machine.clock)


def test_a_faster_contender_is_shown_to_be_faster() -> None:
    machine = Machine({"old": 10.0, "new": 8.0}, noise=0.1, drift=0.3)
    found = compare("old", "new", machine.measure, rounds=25, budget_s=100, clock=machine.clock)

    assert found.is_faster
    assert found.low <= found.ratio <= found.high
    assert found.ratio == pytest.approx(1.25, rel=0.05)
    assert found.rounds == 25


def test_equals_are_rarely_told_apart() -> None:
    verdicts = []
    for seed in range(200):
        machine = Machine({"old": 10.0, "new": 10.0}, noise=0.1, seed=seed)
        verdicts.append(compare("old", "new", machine.measure, rounds=25, budget_s=100, clock=machine.clock).is_faster)

    assert sum(verdicts) <= 10  # 2.5 % of 200 are expected


def test_a_comparison_takes_turns_in_alternating_order() -> None:
    machine = Machine({"old": 10.0, "new": 8.0})
    compare("old", "new", machine.measure, rounds=6, budget_s=100, clock=machine.clock)

    assert machine.runs == ["old", "new"] + ["old", "new", "new", "old"] * 3


def test_six_rounds_are_run_however_short_the_budget() -> None:
    machine = Machine({"old": 10.0, "new": 8.0})
    found = compare("old", "new", machine.measure, rounds=25, budget_s=0, clock=machine.clock)

    assert found.rounds == 6
    assert found.is_faster
