"""A reranker as a model of Triton's Python backend: queries and passages in, scores out.

``crossforge triton`` copies this file to ``<name>/1/model.py``. Triton queues requests and merges them; tokenizing, sorting
by length and cutting into batches are done by crossforge's runtime, over the pairs of all merged requests at once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from crossforge.runtime import CrossforgeError, DeploymentProfile, InputError, Reranker


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The pairs of one request, row by row."""

    pairs: list[tuple[str, str]]
    shape: tuple[int, ...]
    """Rows and passages a row."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to one request."""

    scores: NDArray[np.float32]
    """Raw relevance: float32 [rows, passages]."""
    truncated: NDArray[np.bool_]
    """Pairs of which the model did not see all: bool [rows, passages]."""


class TritonPythonModel:
    """What the Python backend calls: one object an instance, one call at a time."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the bundle that lies beside this file, and check it with its own golden scores.

        Args:
            args: Of which ``model_config`` is read: JSON of ``config.pbtxt``.

        Raises:
            CrossforgeError: The bundle is damaged, or this machine cannot run it as configured. Triton shows the message
                and does not load the model.
        """
        _check_numpy()
        config: dict[str, Any] = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config.get("parameters", {}).items()}
        workers = parameters.get("workers")
        self.reranker = Reranker.load(
            Path(__file__).parent / "bundle",
            provider=parameters.get("provider", "auto"),
            precision=parameters.get("precision", "auto"),
            strict=True,
            deployment=DeploymentProfile(workers=int(workers) if workers else None),
            check_golden=True,
        )
        pb_utils.Logger.log_info(f"{config['name']}: {self.reranker.precision} on {self.reranker.session.provider}")

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests, each with its scores or with an error of its own."""
        read = [_read(request) for request in requests]
        answers = iter(self._score([item for item in read if isinstance(item, Asked)]))
        return [_respond(next(answers) if isinstance(item, Asked) else item) for item in read]

    def finalize(self) -> None:
        """Free the model."""
        self.reranker.close()

    def _score(self, asked: list[Asked]) -> list[Answer | CrossforgeError]:
        """Score the pairs of all requests together; if that fails, those of each request alone."""
        if not asked:
            return []
        try:
            scored = self.reranker.score_pairs([pair for item in asked for pair in item.pairs])
            scores = self.reranker.relevance(scored.logits)
        except CrossforgeError as error:
            return [error] if len(asked) == 1 else [answer for item in asked for answer in self._score([item])]
        ends = np.cumsum([len(item.pairs) for item in asked])[:-1]
        parts = zip(asked, np.split(scores, ends), np.split(scored.truncated, ends), strict=True)
        return [Answer(scores=mine.reshape(item.shape), truncated=cut.reshape(item.shape)) for item, mine, cut in parts]


def _check_numpy() -> None:
    """Make sure that the server's stub reads this NumPy's arrays. One that was built before NumPy 2 dies at a text's."""
    sample = np.arange(3, dtype=np.float32)
    if not np.array_equal(pb_utils.Tensor.from_dlpack("sample", pb_utils.Tensor("sample", sample)).as_numpy(), sample):
        raise CrossforgeError(
            f"Triton's Python backend cannot read the arrays of NumPy {np.__version__}",
            fix='Install "numpy<2" into the environment of the model.',
        )


def _read(request: Any) -> Asked | InputError:
    """The pairs of a request: QUERY [rows, 1] joined with PASSAGE [rows, passages]."""
    try:
        queries, passages = _texts(request, "QUERY"), _texts(request, "PASSAGE")
    except InputError as error:
        return error
    pairs = [(query, text) for (query,), row in zip(queries.tolist(), passages.tolist(), strict=True) for text in row]
    return Asked(pairs=pairs, shape=passages.shape)


def _texts(request: Any, name: str) -> NDArray[np.object_]:
    """A tensor's texts: str [rows, columns]."""
    raw = pb_utils.get_input_tensor_by_name(request, name).as_numpy()
    texts = np.empty(raw.shape, dtype=np.object_)
    for place, value in np.ndenumerate(raw):
        try:
            texts[place] = value.decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{name} {list(place)} is not UTF-8", got=f"byte {error.start}: {error.reason}") from error
    return texts


def _respond(answer: Answer | CrossforgeError) -> Any:
    if isinstance(answer, CrossforgeError):
        error = pb_utils.TritonError
        code = error.INVALID_ARG if isinstance(answer, InputError) else error.INTERNAL
        return pb_utils.InferenceResponse(output_tensors=[], error=error(str(answer), code))
    return pb_utils.InferenceResponse(
        output_tensors=[pb_utils.Tensor("SCORE", answer.scores), pb_utils.Tensor("TRUNCATED", answer.truncated)]
    )
