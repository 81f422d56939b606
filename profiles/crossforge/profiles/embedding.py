"""What a bi-encoder's bundle says beside the rest: how tokens become one vector, and how two vectors are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Pooling(StrEnum):
    """How the vectors of a text's tokens become one; the names are those of sentence-transformers."""

    CLS = "cls"
    """The first token's."""
    MAX = "max"
    """The largest value of each channel."""
    MEAN = "mean"
    MEAN_SQRT_LEN = "mean_sqrt_len_tokens"
    """The sum, divided by the square root of the number of tokens."""
    WEIGHTED_MEAN = "weightedmean"
    """The mean, in which the n-th token counts n times."""
    LAST_TOKEN = "lasttoken"  # noqa: S105


class Similarity(StrEnum):
    """How two embeddings are compared; larger is closer, so distances are negative."""

    COSINE = "cosine"
    DOT = "dot"
    EUCLIDEAN = "euclidean"
    MANHATTAN = "manhattan"


_QUERY_PROMPTS = ("query",)
_PASSAGE_PROMPTS = ("document", "passage", "corpus")
"""The names under which sentence-transformers looks for a prompt of queries and of documents, in this order."""


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """What a bi-encoder makes of a text. The graph holds all of it but the prompts and the similarity."""

    dimension: int
    """Columns of the graph's output."""
    pooling: tuple[Pooling, ...]
    """Several are concatenated."""
    dense: tuple[str, ...]
    """The layers after pooling, in words; empty for most models."""
    normalize: bool
    """Whether the graph scales each vector to length 1."""
    similarity: Similarity
    prompts: dict[str, str]
    """Text that is put before a text, by name."""
    default_prompt: str | None
    """The name of the prompt that a text gets where none is named."""

    def __post_init__(self) -> None:
        if self.dimension < 1 or not self.pooling:
            raise ValueError(f"an embedding needs a dimension and a pooling, got {self.dimension} and {self.pooling}")
        if self.default_prompt is not None and self.default_prompt not in self.prompts:
            raise ValueError(
                f"default_prompt {self.default_prompt!r} is not one of {', '.join(self.prompts) or 'no prompts'}"
            )

    @property
    def query_prompt(self) -> str:
        """What is put before a query."""
        return self._first_prompt(_QUERY_PROMPTS)

    @property
    def passage_prompt(self) -> str:
        """What is put before a passage."""
        return self._first_prompt(_PASSAGE_PROMPTS)

    def _first_prompt(self, names: Sequence[str]) -> str:
        named = [self.prompts[name] for name in names if name in self.prompts]
        if not named and self.default_prompt is not None:
            return self.prompts[self.default_prompt]
        return next((prompt for prompt in named if prompt), "")  # newer versions write "" under the names they do not use
