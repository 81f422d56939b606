"""Real pairs as a bundle's batches."""

from __future__ import annotations

from pathlib import Path

from crossforge.export.calibration import calibration_batches
from crossforge.runtime.batching import Batch
from crossforge.runtime.bundle import TOKENIZER_NAME, Bundle
from crossforge.runtime.records import QueryRecord
from crossforge.runtime.tokenization import PairTokenizer


def batches_of(bundle_path: Path, records: list[QueryRecord]) -> list[Batch]:
    """The batches that the runtime would make of these pairs, through a bundle's tokenizer."""
    manifest = Bundle.open(bundle_path).manifest
    tokenizer = PairTokenizer.from_file(bundle_path / TOKENIZER_NAME, manifest.pair_template, manifest.truncation)
    return calibration_batches(records, tokenizer, pad_token_id=manifest.pad_token_id, input_names=manifest.input_names)
