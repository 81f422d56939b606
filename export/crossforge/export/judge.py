"""The judge of a bundle's variants: measures a model file through the runtime, holds it to its gate, records the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from crossforge.export.evidence import Evidence
from crossforge.export.gates import GATES, Gate
from crossforge.export.options import VariantOptions
from crossforge.export.parity import compare_logits, compare_queries, describe_moved, describe_parity
from crossforge.export.recipe import Settings
from crossforge.export.reports import VariantReport, to_json
from crossforge.export.runner import EmbeddingRunner, ModelRunner
from crossforge.profiles import (
    ExecutionProvider,
    GateError,
    InputError,
    NonFiniteLogitsError,
    ParityReport,
    Precision,
    Scoring,
    Variant,
)
from crossforge.profiles.precision import BF16_INSTRUCTION_SETS, EXACT_INT8_INSTRUCTION_SETS
from crossforge.runtime.activation import Floats
from crossforge.runtime.progress import Stage

_FP32_TOLERANCE = 1e-3
_QUANTIZED_TOLERANCE_FACTOR = 2.0
_SMALLEST_QUANTIZED_TOLERANCE = 0.05
_SMALLEST_EMBEDDED_TOLERANCE = 0.01
"""Cosines lie closer together than logits do."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A variant's file, and how it did."""

    precision: Precision
    path: Path
    files: tuple[Path, ...]
    opset: int
    logits: Floats
    report: VariantReport


class VariantJudge:
    """Judges the variants of one bundle, all on the same verification pairs.

    Args:
        folder: The bundle's folder, being written.
        runner: Runs the variants.
        scoring: What the logits mean.
        options: The gates, and where the report goes.
        evidence: The pairs, and their judgements.
        reduce_range: Whether int8's weights have seven bits, so that no processor saturates.

    Raises:
        InputError: There are judgements, and no label of the model ranks.
    """

    def __init__(
        self,
        folder: Path,
        runner: ModelRunner,
        scoring: Scoring,
        options: VariantOptions,
        *,
        evidence: Evidence,
        reduce_range: bool,
    ) -> None:
        if evidence.judgements is not None and scoring.ranking_label is None:
            raise InputError(
                "judgements are of rankings, and no label of this model ranks",
                got=f"labels {', '.join(scoring.labels)}",
                fix="Name the one that does when you export it: --ranking-label.",
            )
        self._folder = folder
        self._runner = runner
        self._scoring = scoring
        self._options = options
        self._reduce_range = reduce_range
        self.records = evidence.verification
        self._judgements = evidence.judgements
        self.variants: dict[Precision, Variant] = {}
        self.reports: dict[Precision, VariantReport] = {}

    def measure(
        self,
        precision: Precision,
        path: Path,
        reference: Floats,
        stage: Stage,
        *,
        files: Sequence[Path],
        opset: int = 0,
        against: str = "fp32",
        provider: ExecutionProvider = ExecutionProvider.CPU,
    ) -> Measured:
        """Run the very file that was written over the verification pairs.

        Args:
            precision: The variant.
            path: Its model file.
            reference: What it is compared with, float32 [pairs, labels].
            stage: Told how far it is, and how it did.
            files: All files that the variant needs.
            opset: Of the ONNX graph; 0 where there is none.
            against: What the reference is called.
            provider: Runs it.

        Raises:
            InputError: A threshold is asked for that the pairs cannot but reach.
        """
        logits = self._runner.run_file(path, self.records, stage, provider=provider, precision=precision)
        parity = self.compare(precision, logits, reference, against=against)
        if self._options.enforce_gates:
            self._refuse_empty_verdict(self._gate(precision), parity)
        report = VariantReport(
            parity=parity,
            gate=self._gate(precision).describe(parity),
            queries=compare_queries(reference, logits, self.records, ranking_label=self._scoring.ranking_label),
        )
        size_bytes = sum(file.stat().st_size for file in files)
        stage.note = f"{size_bytes / 1e6:.1f} MB; {describe_parity(parity)}"
        return Measured(precision=precision, path=path, files=tuple(files), opset=opset, logits=logits, report=report)

    def compare(self, precision: Precision, logits: Floats, reference: Floats, *, against: str = "fp32") -> ParityReport:
        """Hold logits on the verification pairs to a variant's gate."""
        return compare_logits(
            reference,
            logits,
            self.records,
            ranking_label=self._scoring.ranking_label,
            name=against,
            gate=self._gate(precision),
            judgements=self._judgements,
        )

    def accept(self, measured: Measured, settings: Settings) -> None:
        """Record a variant, or refuse it.

        Raises:
            GateError: It does not rank like its reference, and gates are enforced.
            NonFiniteLogitsError: It answers NaN or infinity.
        """
        precision, parity = measured.precision, measured.report.parity
        self.reports[precision] = measured.report
        if self._options.report is not None:
            self._options.report.write_text(to_json(self.reports), encoding="utf-8")
        if not parity.passed and self._options.enforce_gates:
            raise GateError(
                f"the {precision} variant does not rank like {parity.reference}",
                got=describe_parity(parity) + describe_moved(measured.report.queries),
                allowed=measured.report.gate,
                fix="Leave it out with --precision, change the threshold with --gate, or keep it for study with --no-gate. "
                "Nothing was written.",
            )
        if parity.non_finite:
            raise NonFiniteLogitsError(
                f"the {precision} variant answers NaN or infinity on the verification pairs", fix="Nothing was written."
            )
        largest = _QUANTIZED_TOLERANCE_FACTOR * parity.max_abs_diff
        embeds = isinstance(self._runner, EmbeddingRunner)
        smallest = _SMALLEST_EMBEDDED_TOLERANCE if embeds else _SMALLEST_QUANTIZED_TOLERANCE
        tolerance = _FP32_TOLERANCE if precision is Precision.FP32 else max(smallest, largest)
        self.variants[precision] = Variant(
            path=measured.path.relative_to(self._folder).as_posix(),
            files=tuple(file.relative_to(self._folder).as_posix() for file in measured.files),
            opset=measured.opset,
            quantization=dict(settings),
            instruction_sets=_needed_instruction_sets(precision, reduced=self._reduce_range),
            golden_tolerance=tolerance,
            parity=parity,
        )

    def _refuse_empty_verdict(self, gate: Gate, parity: ParityReport) -> None:
        """Refuse to judge by pairs on which no variant could fail."""
        if gate.min_kendall_tau is not None and self._scoring.ranking_label is not None and parity.kendall_tau is None:
            raise InputError(
                f"{parity.reference} scores all passages of every verification query alike, which proves no ranking",
                fix="Give pairs that it tells apart with --verification.",
            )
        if gate.min_top10_overlap is not None and all(len(record.passages) <= 10 for record in self.records):
            raise InputError(
                "min_top10_overlap holds whatever the order where no query has more than ten passages",
                got=f"up to {max(len(record.passages) for record in self.records)} passages a query",
                fix="Ask for min_kendall_tau, or give more passages with --verification.",
            )

    def _gate(self, precision: Precision) -> Gate:
        return self._options.gates.get(precision, GATES[precision])


def _needed_instruction_sets(precision: Precision, *, reduced: bool) -> tuple[str, ...]:
    """What a processor needs for a variant to compute there what was measured here."""
    if precision is Precision.BF16_OPENVINO:
        return BF16_INSTRUCTION_SETS
    reducible = (Precision.INT8, Precision.INT8_QDQ, Precision.INT8_OPENVINO)
    is_exact = precision is Precision.INT8_DYNAMIC_OPENVINO or (precision in reducible and not reduced)
    return EXACT_INT8_INSTRUCTION_SETS if is_exact else ()
