"""The manifest: what a bundle is, on which whoever makes one and whoever runs one agree.

It is stored as ``crossforge.json`` at the bundle's root. Every field is required: a runtime that does not find what it
needs stops instead of guessing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import StrEnum

from crossforge.profiles.embedding import Embedding
from crossforge.profiles.errors import ManifestError, SchemaVersionError
from crossforge.profiles.jsonio import DecodeError, decode, encode
from crossforge.profiles.precision import Precision
from crossforge.profiles.prompt import Prompt

MANIFEST_NAME = "crossforge.json"
SCHEMA_VERSION = 1


class Activation(StrEnum):
    """The function that turns logits into the scores that ``predict`` returns."""

    IDENTITY = "identity"
    SIGMOID = "sigmoid"
    SOFTMAX = "softmax"


class TruncationSide(StrEnum):
    """The end of a text that gives way when it is too long."""

    RIGHT = "right"
    LEFT = "left"


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the weights came from."""

    id: str
    """Hub id, folder name, or ``demo``."""
    revision: str | None
    """The hub's commit, where there is one."""
    weights_sha256: str
    """Digest of the checkpoint's tensors, by name: two fine-tunes never share it."""


@dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """A run of special tokens and the segment ids that go with them."""

    ids: tuple[int, ...]
    type_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.type_ids):
            raise ValueError(f"{len(self.ids)} ids, but {len(self.type_ids)} type_ids")


@dataclass(frozen=True, kw_only=True)
class PairTemplate:
    """How a pair becomes one sequence: ``prefix query separator passage suffix``.

    A bi-encoder reads a text as the passage of a pair without a query, and without a separator: ``prefix text suffix``.
    """

    prefix: SpecialTokens
    separator: SpecialTokens
    suffix: SpecialTokens
    query_type_id: int
    passage_type_id: int

    @property
    def special_token_count(self) -> int:
        """Tokens of every pair that belong to neither text."""
        return len(self.prefix.ids) + len(self.separator.ids) + len(self.suffix.ids)


@dataclass(frozen=True, kw_only=True)
class Truncation:
    """What happens to text that is too long: the query keeps ``query_max_length`` tokens, the passage gives way.

    Lengths are in tokens; ``max_length`` counts the whole pair with its special tokens, ``query_max_length`` the
    query's own tokens only. Where ``query_max_length`` is None, neither text is a query: the longer one gives way until
    both are of one length, and then both do, as transformers' ``longest_first`` has it.
    """

    max_length: int
    query_max_length: int | None
    side: TruncationSide

    def __post_init__(self) -> None:
        query_max_length = 1 if self.query_max_length is None else self.query_max_length
        if not 0 < query_max_length < self.max_length:
            raise ValueError(f"need 0 < query_max_length < max_length, got {self.query_max_length} and {self.max_length}")

    @property
    def is_symmetric(self) -> bool:
        """Whether the two texts are of equal standing."""
        return self.query_max_length is None

    def describe(self) -> str:
        """The contract in words."""
        if self.is_symmetric:
            return f"up to {self.max_length} tokens; the longer text gives way on the {self.side}"
        query = f"the query keeps {self.query_max_length}"
        return f"up to {self.max_length} tokens; {query}, the passage gives way on the {self.side}"

    def kept_of_query(self, query_tokens: int, passage_tokens: int, special_tokens: int) -> int:
        """How many of its tokens a query keeps beside a passage and special tokens; the passage has the rest of the room."""
        if self.query_max_length is not None:
            return min(query_tokens, self.query_max_length)
        room = self.max_length - special_tokens
        if query_tokens + passage_tokens <= room:
            return query_tokens
        # As the tokenizers package counts for longest_first: of an odd room the longer text has one token more, and of
        # two that are equally long the second.
        kept_of_shorter = min(query_tokens, passage_tokens, room // 2)
        return kept_of_shorter if query_tokens <= passage_tokens else room - kept_of_shorter

    def query_room(self, special_tokens: int) -> int:
        """Most tokens that a query can keep beside so many special tokens and one of the passage."""
        return self.max_length - special_tokens - 1 if self.query_max_length is None else self.query_max_length


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """What the logits mean."""

    labels: tuple[str, ...]
    """The name of each output column."""
    activation: Activation
    ranking_label: int | None
    """The column that ranks; None for a classifier of pairs that was never meant to rank (three NLI labels, say)."""

    def __post_init__(self) -> None:
        if not self.labels:
            raise ValueError("a model needs at least one label")
        if self.ranking_label is not None and not 0 <= self.ranking_label < len(self.labels):
            raise ValueError(f"ranking_label {self.ranking_label} is not one of {len(self.labels)} labels")


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """What a file was when the bundle was written."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class ParityQuality:
    """Ranking quality on judged pairs: the variant's, and its reference's on the same pairs."""

    ndcg_at_10: float
    mrr_at_10: float
    reference_ndcg_at_10: float
    reference_mrr_at_10: float


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """How far a variant's logits and rankings stand from its reference's, on the same pairs through the same runtime."""

    reference: str
    """``pytorch`` (the checkpoint itself) or ``fp32`` (the exported graph)."""
    pairs_sha256: str
    """Digest of the pairs that were compared."""
    queries: int
    pairs: int
    max_abs_diff: float
    """Largest difference of a logit."""
    mean_abs_diff: float
    kendall_tau: float | None
    """Mean over queries of tau-b between the two orders; None where no label ranks."""
    top1_agreement: float | None
    """Share of queries with the same best passage."""
    top10_overlap: float | None
    """Mean share of the reference's ten best passages that the variant also has among its ten best."""
    ties_created: int
    """Pairs of passages of one query that the reference tells apart and the variant does not."""
    non_finite: int
    """Logits of the variant that are NaN or infinite."""
    quality: ParityQuality | None
    """None where the pairs carry no judgements."""
    passed: bool
    """Whether it reached its gate's thresholds."""

    @property
    def ndcg_loss(self) -> float | None:
        """By how much nDCG@10 is lower than the reference's."""
        return None if self.quality is None else self.quality.reference_ndcg_at_10 - self.quality.ndcg_at_10

    @property
    def mrr_loss(self) -> float | None:
        """By how much MRR@10 is lower than the reference's."""
        return None if self.quality is None else self.quality.reference_mrr_at_10 - self.quality.mrr_at_10


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One model file of the bundle."""

    path: str
    """The ONNX file, relative to the bundle."""
    files: tuple[str, ...]
    """Everything that the variant loads: ``path`` and its external data."""
    opset: int
    quantization: dict[str, str | int | float | bool]
    """The settings that the variant was made with; empty for fp32."""
    instruction_sets: tuple[str, ...]
    """CPU instruction sets one of which the integer arithmetic needs to be exact; empty where it is exact anywhere."""
    golden_tolerance: float
    """Largest difference to a golden logit that ``verify`` accepts."""
    parity: ParityReport


@dataclass(frozen=True, kw_only=True)
class GoldenPair:
    """A pair and the logits that the original PyTorch model gave it."""

    query: str
    passage: str
    logits: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Trimming:
    """What ``crossforge trim`` left of the checkpoint's vocabulary."""

    kept_tokens: int
    removed_tokens: int

    def __str__(self) -> str:
        return f"{self.kept_tokens:,} of {self.kept_tokens + self.removed_tokens:,} tokens are left"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The contract between the maker of a bundle and its runner."""

    schema_version: int = field(default=SCHEMA_VERSION)
    source: Source
    architecture: str
    """The checkpoint's class, such as ``BertForSequenceClassification``."""
    model_type: str
    """The architecture's family in transformers, such as ``bert``."""
    input_names: tuple[str, ...]
    """The graph's inputs; says whether ``token_type_ids`` must be sent or must not."""
    pair_template: PairTemplate
    prompt: Prompt | None = None
    """Set where a pair is filled into a text, for a causal reranker. The pair template then holds its prefix and suffix."""
    pad_token_id: int
    truncation: Truncation
    scoring: Scoring
    trimmed: Trimming | None = None
    """Set where the tokenizer and the embedding table hold a part of the checkpoint's vocabulary."""
    embedding: Embedding | None = None
    """Set where the model is a bi-encoder: its graph answers with a vector a text, and the score of a pair is the similarity
    of its texts' vectors."""
    variants: dict[Precision, Variant]
    golden: tuple[GoldenPair, ...]
    tools: dict[str, str]
    """Versions of the packages that made the bundle."""
    files: dict[str, FileRecord]
    """Every file of the bundle but this one, by its path relative to the bundle."""

    def __post_init__(self) -> None:
        if "input_ids" not in self.input_names:
            raise ValueError(f"input_names must hold input_ids, got {list(self.input_names)}")
        query_tokens = self.truncation.query_max_length or 1
        if self.truncation.max_length < query_tokens + self.pair_template.special_token_count + 1:
            raise ValueError("max_length leaves no room for a passage beside a query of query_max_length tokens")
        if not self.variants:
            raise ValueError("a bundle needs at least one variant")
        for precision, variant in self.variants.items():
            if variant.path not in variant.files:
                raise ValueError(f"variant {precision} does not list its own path {variant.path} among its files")
            for path in variant.files:
                if path not in self.files:
                    raise ValueError(f"variant {precision} names {path}, which files does not record")
        for pair in self.golden:
            if len(pair.logits) != len(self.scoring.labels):
                raise ValueError(f"a golden pair has {len(pair.logits)} logits for {len(self.scoring.labels)} labels")

    @property
    def output_columns(self) -> int:
        """Columns of the graph's output: the labels of a cross-encoder, the dimension of a bi-encoder's vectors."""
        return len(self.scoring.labels) if self.embedding is None else self.embedding.dimension

    def to_json(self) -> str:
        """The manifest as indented JSON text."""
        return json.dumps(encode(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, *, where: str = MANIFEST_NAME) -> Manifest:
        """Read a manifest.

        Args:
            text: The content of ``crossforge.json``.
            where: What an error calls the file.

        Raises:
            SchemaVersionError: A newer crossforge wrote it.
            ManifestError: It is not JSON, or a field is missing, unknown or of the wrong type.
        """
        export_again = "Export the bundle again."
        try:
            document = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise ManifestError(f"{where} is not JSON ({error})", fix=export_again) from error
        if not isinstance(document, dict) or type(document.get("schema_version")) is not int:
            raise ManifestError(f"{where} has no schema_version", allowed="an integer", fix=export_again)
        version = document["schema_version"]
        if version > SCHEMA_VERSION:
            raise SchemaVersionError(
                f"{where} was written by a newer crossforge",
                got=f"schema_version {version}",
                allowed=f"up to {SCHEMA_VERSION}",
                fix="Upgrade crossforge, or export the bundle again with this version.",
            )
        if version < SCHEMA_VERSION:
            raise ManifestError(
                f"{where} has an unknown schema_version", got=version, allowed=SCHEMA_VERSION, fix=export_again
            )
        try:
            return decode(cls, document)
        except DecodeError as error:
            raise ManifestError(f"{where} is not a valid manifest ({error})", fix=export_again) from error


def _refuse_constant(name: str) -> float:
    """NaN and the infinities are no JSON, and as golden logits they would compare as equal to anything."""
    raise ValueError(f"{name} is not a JSON number")
