"""Does a variant still rank like its reference? Measured on pairs, judged by one table of thresholds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from crossforge.export.pairs import digest_pairs, flatten
from crossforge.profiles import ParityReport, Precision
from crossforge.runtime.activation import Floats, relevance
from crossforge.runtime.records import QueryRecord

if TYPE_CHECKING:
    from crossforge.export.source import LoadedSource

_REFERENCE_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What a variant must reach."""

    max_abs_diff: float | None = None
    """Largest difference of a logit that is accepted."""
    min_kendall_tau: float | None = None
    """Smallest mean tau-b that is accepted; not applied to a model without a ranking label."""

    def passes(self, max_abs_diff: float, kendall_tau: float | None) -> bool:
        """Whether measured figures reach the thresholds."""
        close = self.max_abs_diff is None or max_abs_diff <= self.max_abs_diff
        ordered = self.min_kendall_tau is None or kendall_tau is None or kendall_tau >= self.min_kendall_tau
        return close and ordered and bool(np.isfinite(max_abs_diff))

    def describe(self) -> str:
        """The thresholds in words."""
        parts = []
        if self.max_abs_diff is not None:
            parts.append(f"logits within {self.max_abs_diff:g}")
        if self.min_kendall_tau is not None:
            parts.append(f"Kendall tau of at least {self.min_kendall_tau:g}")
        return " and ".join(parts) or "anything finite"


GATES: Mapping[Precision, Gate] = {
    Precision.FP32: Gate(max_abs_diff=1e-3, min_kendall_tau=0.999),
    Precision.FP16: Gate(min_kendall_tau=0.99),
    Precision.INT8: Gate(min_kendall_tau=0.95),
}
"""The thresholds on the verification pairs, which have twenty passages a query: a swap of neighbours costs one 0.011."""

OPEN_GATE = Gate()
"""Lets everything finite through."""


def compare_logits(
    reference: Floats, variant: Floats, records: Sequence[QueryRecord], *, ranking_label: int | None, name: str, gate: Gate
) -> ParityReport:
    """Compare two models' logits on the same pairs.

    Args:
        reference: float32 [pairs, labels], pairs in the order of ``records``.
        variant: The same of the variant.
        records: The queries that the pairs belong to.
        ranking_label: The column that ranks, if one does.
        name: What the reference is called.
        gate: Decides ``passed``.
    """
    with np.errstate(invalid="ignore"):  # where infinities meet; the gate refuses them
        difference = np.abs(reference.astype(np.float64) - variant)
    max_abs_diff = float(difference.max(initial=0.0))
    taus: list[float] = []
    top1: list[bool] = []
    top10: list[float] = []
    if ranking_label is not None:
        with np.errstate(invalid="ignore"):
            a, b = relevance(reference, ranking_label), relevance(variant, ranking_label)
        for _, rows in _rows_by_query(records):
            if (tau := kendall_tau(a[rows], b[rows])) is not None:
                taus.append(tau)
            if rows.stop > rows.start:
                best_a, best_b = _best_first(a[rows]), _best_first(b[rows])
                top1.append(bool(best_a[0] == best_b[0]))
                top10.append(len(set(best_a[:10].tolist()) & set(best_b[:10].tolist())) / len(best_a[:10]))
    tau_mean = float(np.mean(taus)) if taus else None
    return ParityReport(
        reference=name,
        pairs_sha256=digest_pairs(records),
        queries=len(records),
        pairs=len(reference),
        max_abs_diff=max_abs_diff,
        mean_abs_diff=float(difference.mean()) if difference.size else 0.0,
        kendall_tau=tau_mean,
        top1_agreement=float(np.mean(top1)) if top1 else None,
        top10_overlap=float(np.mean(top10)) if top10 else None,
        passed=gate.passes(max_abs_diff, tau_mean),
    )


def describe_parity(parity: ParityReport) -> str:
    """The figures of a report in one line."""
    parts = [f"largest logit difference {parity.max_abs_diff:.2g}"]
    if parity.kendall_tau is not None:
        parts.append(f"Kendall tau {parity.kendall_tau:.4f}")
    if parity.top1_agreement is not None:
        parts.append(f"same first passage {parity.top1_agreement:.0%}")
    return ", ".join(parts)


def describe_moved(
    reference: Floats, variant: Floats, records: Sequence[QueryRecord], *, ranking_label: int | None, most: int = 3
) -> str:
    """The queries whose ranking moved most, in words that continue a sentence; blank where nothing ranks."""
    if ranking_label is None:
        return ""
    taus: list[tuple[float, str]] = []
    with np.errstate(invalid="ignore"):
        a, b = relevance(reference, ranking_label), relevance(variant, ranking_label)
    for record, rows in _rows_by_query(records):
        if (tau := kendall_tau(a[rows], b[rows])) is not None:
            taus.append((tau, record.query))
    worst = ", ".join(f"{query!r:.50} ({tau:.2f})" for tau, query in sorted(taus)[:most])
    return f"; most moved: {worst}"


def _rows_by_query(records: Sequence[QueryRecord]) -> Iterator[tuple[QueryRecord, slice]]:
    """Each query with the rows that its pairs take in a matrix of all pairs."""
    start = 0
    for record in records:
        stop = start + len(record.passages)
        yield record, slice(start, stop)
        start = stop


def kendall_tau(a: NDArray[np.floating], b: NDArray[np.floating]) -> float | None:
    """Kendall's tau-b between two score lists; None where one of them orders nothing (all tied, or one item)."""
    from scipy.stats import kendalltau

    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(kendalltau(a, b).statistic)


def reference_logits(source: LoadedSource, records: Sequence[QueryRecord]) -> Floats:
    """Logits of the PyTorch model, through its own tokenizer: nothing of crossforge's runtime takes part.

    Returns:
        float32 [pairs, labels], in the order of ``records``.
    """
    import torch

    pairs = flatten(records)
    tokenizer = source.tokenizer
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
    logits = np.empty((len(pairs), len(source.scoring.labels)), dtype=np.float32)
    with torch.inference_mode():
        for start in range(0, len(order), _REFERENCE_BATCH):
            rows = order[start : start + _REFERENCE_BATCH]
            encodings = [_encode(source, *pairs[i]) for i in rows]
            longest = max(map(len, encodings))
            for encoding in encodings:
                encoding.pad(longest, pad_id=tokenizer.pad_token_id or 0)
            inputs = {
                "input_ids": [encoding.ids for encoding in encodings],
                "attention_mask": [encoding.attention_mask for encoding in encodings],
                "token_type_ids": [encoding.type_ids for encoding in encodings],
            }
            read = {name: torch.tensor(ids) for name, ids in inputs.items() if name in tokenizer.model_input_names}
            logits[rows] = source.model(**read).logits.float().numpy()
    return logits


def _encode(source: LoadedSource, query: str, passage: str) -> Encoding:
    """A pair as the tokenizer's post-processor joins it, after each text was cut, by tokens, to what the contract keeps."""
    backend, truncation = source.tokenizer.backend_tokenizer, source.truncation
    first: Encoding = backend.encode(query, add_special_tokens=False)
    first.truncate(truncation.query_max_length, direction=truncation.side)
    second: Encoding = backend.encode(passage, add_special_tokens=False)
    room = truncation.max_length - len(first) - backend.num_special_tokens_to_add(is_pair=True)
    second.truncate(room, direction=truncation.side)
    return backend.post_process(first, second)


def _best_first(scores: Floats) -> NDArray[np.intp]:
    return np.argsort(-scores, kind="stable")
