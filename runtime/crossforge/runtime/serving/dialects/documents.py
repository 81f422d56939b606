"""Documents as Cohere and Jina take them: a text, or an object that has one."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, model_validator

from crossforge.runtime.serving.dialects.chunks import window_of
from crossforge.runtime.serving.service import Scores


class Document(BaseModel):
    """An object with a text; its other fields come back with it."""

    model_config = ConfigDict(extra="allow", strict=True)

    text: str

    @model_validator(mode="after")
    def _check_that_it_can_come_back(self) -> Document:
        if self.model_extra:  # 1e999 is JSON, and read as infinity, which is none
            json.dumps(self.model_extra, allow_nan=False)
        return self


class RankedDocument(BaseModel):
    """One row of an answer; ``document`` is there only if it was asked for."""

    index: int
    relevance_score: float
    document: Document | None = None


def texts_of(documents: Sequence[str | Document]) -> list[str]:
    """The text of each document."""
    return [item if isinstance(item, str) else item.text for item in documents]


def rank_documents(
    scores: Scores, documents: Sequence[str | Document], *, top_n: int | None, with_documents: bool
) -> list[dict[str, object]]:
    """Rows best first, with scores between 0 and 1."""
    values = scores.bounded()
    rows: list[dict[str, object]] = []
    for i in scores.best_first(top_n):
        row: dict[str, object] = {"index": i, "relevance_score": values[i], **window_of(scores, i)}
        if with_documents:
            item = documents[i]
            row["document"] = {"text": item} if isinstance(item, str) else item.model_dump()
        rows.append(row)
    return rows
