"""How variants are made and judged. Light: the command line reads it before anything heavy is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from crossforge.export.gates import GATES, Gate
from crossforge.profiles import InputError, Precision

EXTERNAL_DATA_THRESHOLD_BYTES = 2**31 - 2**20
"""Protobuf cannot hold a message of 2 GB; above this, weights go into a file of their own."""


class Int8Recipe(StrEnum):
    """Where int8 takes the scales of activations from."""

    DYNAMIC = "dynamic"
    """From each token as it comes."""
    STATIC = "static"
    """From calibration pairs, once for all."""


class RangeMethod(StrEnum):
    """How much of what calibration saw a fixed scale covers."""

    MINMAX = "minmax"
    """All of it."""
    PERCENTILE = "percentile"
    """All but a fixed share of the values, as much on each side."""
    ENTROPY = "entropy"
    """As much as keeps most information in 128 levels a side; TensorRT's scheme."""


@dataclass(frozen=True, kw_only=True)
class VariantOptions:
    """How variants are made and judged."""

    gates: Mapping[Precision, Gate] = field(default_factory=lambda: GATES)
    verification: Path | None = None
    """Pairs in the run format that verdicts rest on; None takes the built-in ones."""
    qrels: Path | None = None
    """Judgements of the verification pairs, in TREC format."""
    calibration: Path | None = None
    """Pairs in the run format that quantization is tuned on; None takes the built-in ones."""
    recipe: Int8Recipe = Int8Recipe.DYNAMIC
    """How ``int8`` is made; ``int8_qdq`` is static always."""
    range_method: RangeMethod = RangeMethod.MINMAX
    """How static int8 chooses the ranges of activations."""
    reduce_range: bool | None = None
    """Seven bits a weight instead of eight, so that no processor saturates; None does so where this one would."""
    repair: bool = True
    """When int8 fails its gate, leave the fewest layers in float32 with which it passes."""
    enforce_gates: bool = True
    """False writes variants that fail too; their manifest entry says so, and ``auto`` never takes them."""
    report: Path | None = None
    """Where the parity report is written besides the bundle; it is there also when a variant is refused."""
    external_data_threshold_bytes: int = EXTERNAL_DATA_THRESHOLD_BYTES

    def __post_init__(self) -> None:
        if self.qrels is not None and self.verification is None:
            raise InputError("judgements need the pairs that they judge", fix="Name them with --verification.")
