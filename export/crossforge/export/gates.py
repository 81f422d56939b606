"""What a variant must reach before it ships: one table of thresholds, which a caller may override."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from crossforge.profiles import InputError, ParityReport, Precision


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Thresholds on the figures of a :class:`ParityReport`; None leaves a figure free.

    A figure that cannot be had (a ranking of a model that does not rank, nDCG without judgements) is not judged. A variant
    with a logit that is not finite passes no gate.
    """

    max_abs_diff: float | None = None
    """Largest difference of a logit."""
    min_kendall_tau: float | None = None
    """Smallest mean tau-b."""
    min_top1_agreement: float | None = None
    """Smallest share of queries with the same best passage."""
    min_top10_overlap: float | None = None
    """Smallest mean share of the reference's ten best passages that are kept among the ten best."""
    max_ties_created: float | None = None
    """Largest number of pairs of passages that the reference tells apart and the variant does not."""
    max_ndcg_loss: float | None = None
    """Largest loss of nDCG@10, where there are judgements."""
    max_mrr_loss: float | None = None
    """Largest loss of MRR@10, where there are judgements."""

    def __post_init__(self) -> None:
        for name in THRESHOLDS:
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise InputError(f"the threshold {name} is not a number", got=value)

    def failures(self, parity: ParityReport) -> tuple[str, ...]:
        """The thresholds that measured figures miss, by name."""
        missed = [name for name in THRESHOLDS if not self._holds(name, parity)]
        return (*missed, *(("finite logits",) if parity.non_finite else ()))

    def passes(self, parity: ParityReport) -> bool:
        """Whether measured figures reach every threshold."""
        return not self.failures(parity)

    def describe(self, parity: ParityReport | None = None) -> str:
        """The thresholds in words; with a report, only those that judge one of its figures."""
        names = [name for name in THRESHOLDS if getattr(self, name) is not None]
        if parity is not None:
            names = [name for name in names if _figure(name, parity) is not None]
        return " and ".join(_FIGURES[name][1].format(getattr(self, name)) for name in names) or "anything finite"

    def _holds(self, name: str, parity: ParityReport) -> bool:
        limit, figure = getattr(self, name), _figure(name, parity)
        if limit is None or figure is None:
            return True
        return bool(figure >= limit if name.startswith("min_") else figure <= limit)


def _figure(threshold: str, parity: ParityReport) -> float | None:
    figure: float | None = getattr(parity, _FIGURES[threshold][0])
    return figure


_FIGURES = {
    "max_abs_diff": ("max_abs_diff", "logits within {:g}"),
    "min_kendall_tau": ("kendall_tau", "Kendall tau of at least {:g}"),
    "min_top1_agreement": ("top1_agreement", "the same best passage in {:.0%} of the queries"),
    "min_top10_overlap": ("top10_overlap", "top-10 overlap of at least {:g}"),
    "max_ties_created": ("ties_created", "no more than {:g} new ties"),
    "max_ndcg_loss": ("ndcg_loss", "nDCG@10 lower by no more than {:g}"),
    "max_mrr_loss": ("mrr_loss", "MRR@10 lower by no more than {:g}"),
}
_NEED_JUDGEMENTS = ("max_ndcg_loss", "max_mrr_loss")
THRESHOLDS = tuple(_FIGURES)
"""The names of a gate's thresholds."""

GATES: Mapping[Precision, Gate] = {
    Precision.FP32: Gate(max_abs_diff=1e-3, min_kendall_tau=0.999, max_ndcg_loss=0.001),
    Precision.FP16: Gate(min_kendall_tau=0.99, max_ndcg_loss=0.002),
    Precision.FP16_CUDA: Gate(min_kendall_tau=0.99, max_ndcg_loss=0.002),
    Precision.INT8: Gate(min_kendall_tau=0.95, max_ndcg_loss=0.01),
    Precision.INT8_QDQ: Gate(min_kendall_tau=0.95, max_ndcg_loss=0.01),
    Precision.INT8_NATIVE: Gate(min_kendall_tau=0.95, max_ndcg_loss=0.01),
    Precision.BF16_OPENVINO: Gate(min_kendall_tau=0.98, max_ndcg_loss=0.005),
    Precision.INT8_OPENVINO: Gate(min_kendall_tau=0.95, max_ndcg_loss=0.01),
    Precision.INT8_DYNAMIC_OPENVINO: Gate(min_kendall_tau=0.95, max_ndcg_loss=0.01),
}
"""The thresholds. With the twenty passages that a built-in query has, a swap of neighbours costs tau 0.011."""

OPEN_GATE = Gate()
"""Lets everything finite through."""


def parse_gates(texts: Iterable[str], *, judged: bool = False) -> dict[Precision, Gate]:
    """Override the table with texts such as ``min_kendall_tau=0.98`` (every variant) or ``int8:max_ndcg_loss=0.005``.

    A threshold that no text names stays as the table has it; ``none`` lifts one.

    Args:
        texts: The overrides; later ones win.
        judged: Whether there are judgements, without which nothing would hold a loss of nDCG or MRR to its threshold.

    Raises:
        InputError: A text is not such an override, or asks for judgements that are not there.
    """
    gates = dict(GATES)
    for text in texts:
        where, _, setting = text.rpartition(":")
        name, equals, number = (part.strip() for part in setting.partition("="))
        if not equals or name not in THRESHOLDS:
            raise InputError(
                f"{text!r} is not a threshold", allowed=f"[PRECISION:]NAME=NUMBER with one of {', '.join(THRESHOLDS)}"
            )
        try:
            chosen = [Precision(where.strip())] if where else list(gates)
        except ValueError:
            raise InputError("unknown precision in a gate", got=repr(text), allowed=", ".join(Precision)) from None
        try:
            value = None if number == "none" else float(number)
        except ValueError:
            raise InputError(
                f"the threshold {name} is not a number", got=repr(number), allowed="a number, or none"
            ) from None
        if name in _NEED_JUDGEMENTS and value is not None and not judged:
            raise InputError(
                f"{name} can only be held with judgements", fix="Give --verification FILE and --qrels FILE too."
            )
        for precision in chosen:
            gates[precision] = dataclasses.replace(gates[precision], **{name: value})
    return gates
