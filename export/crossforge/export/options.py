"""How a source is read, and how variants are made and judged.

Light: the command line reads it before anything heavy is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from crossforge.export.gates import GATES, Gate
from crossforge.profiles import Activation, InputError, Precision

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
class CausalOptions:
    """What may be said about a causal reranker."""

    template: str | None = None
    """``qwen3`` or a TOML file with ``prefix``, ``body``, ``suffix`` and ``instruction``."""
    yes_token: str | None = None
    no_token: str | None = None
    instruction: str | None = None
    """Instead of the template's."""

    def given(self) -> list[str]:
        """The options that were given, as the command line calls them."""
        return [f"--{name.replace('_', '-')}" for name, value in vars(self).items() if value is not None]


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """What may be said about a source that it does not say itself, and what it may do."""

    revision: str | None = None
    max_length: int | None = None
    """Tokens of a pair, special tokens included; None takes the model's own limit."""
    query_max_length: int | None = None
    """Tokens that a query keeps; None takes 64, or less where a pair is short."""
    symmetric: bool = False
    """Neither text is a query: of a pair that is too long the longer text gives way."""
    activation: Activation | None = None
    ranking_label: int | None = None
    trust_remote_code: bool = False
    """Run Python code that comes with the checkpoint."""
    causal: CausalOptions = field(default_factory=CausalOptions)
    """How a language model scores a pair, where its folder does not say."""
    allow_pickle: bool = False
    """Read weights from pickle files, which can run code when they are read."""

    def __post_init__(self) -> None:
        if self.symmetric and self.query_max_length is not None:
            raise InputError(
                "two texts of equal standing have no query",
                got=f"symmetric and query_max_length {self.query_max_length}",
                allowed="one of the two",
            )


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
