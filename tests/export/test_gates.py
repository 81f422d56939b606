from __future__ import annotations

import math
from typing import Any

import pytest

from crossforge.export.gates import GATES, OPEN_GATE, THRESHOLDS, Gate, parse_gates
from crossforge.profiles import InputError, ParityQuality, Precision
from support.builders import make_parity

QUALITY = ParityQuality(ndcg_at_10=0.70, mrr_at_10=0.80, reference_ndcg_at_10=0.75, reference_mrr_at_10=0.80)
FIGURES: dict[str, Any] = {
    "max_abs_diff": 0.1,
    "kendall_tau": 0.9,
    "top1_agreement": 0.9,
    "top10_overlap": 0.9,
    "ties_created": 2,
    "quality": QUALITY,
}
REACHED = {
    "max_abs_diff": (0.1, 0.09),
    "min_kendall_tau": (0.9, 0.91),
    "min_top1_agreement": (0.9, 0.91),
    "min_top10_overlap": (0.9, 0.91),
    "max_ties_created": (2, 1),
    "max_ndcg_loss": (0.0501, 0.0499),
    "max_mrr_loss": (0.0, -0.01),
}
"""For each threshold a value that the figures reach, and one that they miss."""


@pytest.mark.parametrize("name", THRESHOLDS)
def test_a_gate_passes_what_reaches_its_threshold(name: str) -> None:
    reached, missed = REACHED[name]
    parity = make_parity(**FIGURES)
    assert Gate(**{name: reached}).passes(parity)
    assert Gate(**{name: missed}).failures(parity) == (name,)


def test_every_missed_threshold_is_named() -> None:
    gate = Gate(max_abs_diff=0.01, min_kendall_tau=0.5, min_top10_overlap=0.95)
    assert gate.failures(make_parity(**FIGURES)) == ("max_abs_diff", "min_top10_overlap")


@pytest.mark.parametrize("name", ["min_kendall_tau", "min_top1_agreement", "max_ndcg_loss", "max_mrr_loss"])
def test_a_figure_that_cannot_be_had_is_not_judged(name: str) -> None:
    parity = make_parity(kendall_tau=None, top1_agreement=None, top10_overlap=None, quality=None)
    assert Gate(**{name: REACHED[name][1]}).passes(parity)


@pytest.mark.parametrize("gate", [OPEN_GATE, *GATES.values()])
def test_no_gate_passes_what_is_not_finite(gate: Gate) -> None:
    assert gate.passes(make_parity())
    assert not gate.passes(make_parity(non_finite=1))
    assert not Gate(max_abs_diff=1.0).passes(make_parity(max_abs_diff=math.nan))


def test_a_gate_is_described_in_words() -> None:
    assert OPEN_GATE.describe() == "anything finite"
    gate = Gate(max_abs_diff=1e-3, min_kendall_tau=0.9, max_ndcg_loss=0.01)
    whole = "logits within 0.001 and Kendall tau of at least 0.9 and nDCG@10 lower by no more than 0.01"
    assert gate.describe() == gate.describe(make_parity(**FIGURES)) == whole
    assert gate.describe(make_parity()) == "logits within 0.001 and Kendall tau of at least 0.9"


def test_a_threshold_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(InputError, match="min_kendall_tau is not a number"):
        Gate(min_kendall_tau=math.nan)


# On the command line


def test_a_loss_of_quality_is_asked_for_with_judgements_only() -> None:
    with pytest.raises(InputError, match=r"max_ndcg_loss can only be held with judgements.*--qrels"):
        parse_gates(["int8:max_ndcg_loss=0.001"])
    assert parse_gates(["int8:max_ndcg_loss=0.001"], judged=True)[Precision.INT8].max_ndcg_loss == 0.001
    assert parse_gates(["max_mrr_loss=none"])[Precision.INT8].max_mrr_loss is None


def test_nothing_overrides_nothing() -> None:
    assert parse_gates([]) == GATES


def test_an_override_changes_one_threshold_of_one_variant() -> None:
    gates = parse_gates(["int8:min_kendall_tau=0.98", " fp16 : max_abs_diff = 0.5 "])
    assert gates[Precision.INT8] == Gate(min_kendall_tau=0.98, max_ndcg_loss=GATES[Precision.INT8].max_ndcg_loss)
    assert gates[Precision.FP16].max_abs_diff == 0.5
    assert gates[Precision.FP32] == GATES[Precision.FP32]


def test_an_override_without_a_variant_changes_all_and_a_later_one_wins() -> None:
    gates = parse_gates(["min_top10_overlap=0.8", "int8:min_top10_overlap=0.7", "fp32:max_abs_diff=none"])
    assert {p: gates[p].min_top10_overlap for p in Precision} == {**dict.fromkeys(Precision, 0.8), Precision.INT8: 0.7}
    assert gates[Precision.FP32].max_abs_diff is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("min_kendall_tau", "not a threshold.*PRECISION"),
        ("tau=0.9", "not a threshold.*min_kendall_tau"),
        ("min_kendall_tau=high", "not a number.*'high'"),
        ("min_kendall_tau=nan", "not a number"),
        ("int4:min_kendall_tau=0.9", "unknown precision.*fp32"),
        ("", "not a threshold"),
    ],
)
def test_a_broken_override_is_named(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_gates([text])
