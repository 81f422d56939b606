"""What variants are tuned on and judged by: read, and refused if it could show nothing, before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from crossforge.export.calibration import read_calibration
from crossforge.export.options import VariantOptions
from crossforge.export.pairs import read_verification
from crossforge.export.quality import Judgements, read_qrels
from crossforge.profiles import InputError
from crossforge.runtime.records import QueryRecord


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The pairs and judgements of one export."""

    calibration: Sequence[QueryRecord]
    """What quantization is tuned on; shares no pair with ``verification``."""
    verification: Sequence[QueryRecord]
    """What verdicts rest on."""
    judgements: Judgements | None
    """Of the verification pairs; None where nobody judged them."""


def read_evidence(options: VariantOptions) -> Evidence:
    """Read what the options name.

    Raises:
        InputError: A file cannot be read; the calibration pairs are too few; the verification pairs order nothing or are
            among the calibration pairs; no loss could show in the judgements; or the report could not be written.
    """
    if options.report is not None and (options.report.is_dir() or not options.report.parent.is_dir()):
        raise InputError(f"cannot write the report {options.report}", allowed="a file in a folder that is there")
    calibration = read_calibration(options.calibration)
    verification = read_verification(options.verification, calibration=calibration)
    judgements = None if options.qrels is None else _read_judgements(options.qrels, verification)
    return Evidence(calibration=calibration, verification=verification, judgements=judgements)


def _read_judgements(qrels: Path, verification: Sequence[QueryRecord]) -> Judgements:
    judgements = read_qrels(qrels)
    judged = [(record, judgements[record.qid]) for record in verification if record.qid in judgements]
    grades = [{max(0, grade_of.get(passage.id, 0)) for passage in record.passages} for record, grade_of in judged]
    if judged and all(len(found) < 2 for found in grades):
        raise InputError(
            f"{qrels} tells no passages of the verification pairs apart, so nothing could show a loss of nDCG",
            got=f"one grade alone in each of {len(judged)} judged queries",
            allowed="grades of the passage ids that the pairs have",
        )
    return judgements
