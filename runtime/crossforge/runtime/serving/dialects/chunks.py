"""``chunk``: a field of our own on TEI's and Cohere's shapes, for passages that are too long; docs/long-passages.md."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from crossforge.runtime.serving.service import Scores
from crossforge.runtime.windows import DEFAULT_OVERLAP, MAX_OVERLAP, Chunking


class ChunkOptions(BaseModel):
    """How passages are split into overlapping windows."""

    model_config = ConfigDict(extra="forbid", strict=True)

    pooling: Literal["max"] = Field(default="max", description="The best window's score is the passage's.")
    overlap: float = Field(
        default=DEFAULT_OVERLAP, ge=0, le=MAX_OVERLAP, description="Share of a window that the next one repeats."
    )
    window_tokens: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Longest window, in tokens of the passage; null: what the model reads of one."
    )


Chunk = Annotated[
    Literal["max"] | ChunkOptions | None,
    Field(
        description="An extension of crossforge. Passages that are too long are split into overlapping windows instead of "
        'being cut; "max" is the options\' defaults. Each window costs its own tokens.'
    ),
]


class WindowRead(BaseModel):
    """The window that gave a passage its score."""

    index: int = Field(description="Which of the passage's windows, from 0.")
    count: int
    start: int = Field(description="The first character that it reads, in Unicode code points.")
    end: int = Field(description="The character after the last one.")


def chunking_of(chunk: Literal["max"] | ChunkOptions | None) -> Chunking | None:
    """What the runtime calls it."""
    if chunk is None:
        return None
    options = chunk if isinstance(chunk, ChunkOptions) else ChunkOptions()
    return Chunking(overlap=options.overlap, window_tokens=options.window_tokens)


def window_of(scores: Scores, i: int) -> dict[str, object]:
    """The field ``window`` of a row, where its passage was split."""
    window = None if scores.scored.windows is None else scores.scored.windows[i]
    return {} if window is None else {"window": vars(window)}
