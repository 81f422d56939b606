"""Real pairs through a model, to learn what its activations look like before they are quantized."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from crossforge.export.onnx import save_onnx
from crossforge.export.pairs import calibration_pairs, flatten
from crossforge.profiles import InputError, PairTemplate
from crossforge.runtime.batching import Batch, collate, plan_batches
from crossforge.runtime.records import QueryRecord, read_run
from crossforge.runtime.scoring import CPU_BUDGET_TOKENS
from crossforge.runtime.tokenization import EncodedPairs, PairTokenizer

FEWEST_PAIRS = 16
_ERRORS_ONLY = 3
_GRAM_BUDGET_BYTES = 2**30
"""Grams of as many activations are collected in one pass over the pairs as fit here."""


@dataclass(frozen=True, kw_only=True)
class ActivationStatistics:
    """What the tokens of one activation [batch, sequence, hidden] look like; padding does not count."""

    tokens: int
    largest: NDArray[np.float64]
    """Largest magnitude of each channel: [hidden]."""
    gram: NDArray[np.float64]
    """Mean outer product of the token vectors, ``X^T X / tokens``: [hidden, hidden]."""

    def divided_by(self, scales: NDArray[np.floating]) -> ActivationStatistics:
        """The statistics of the activation divided by one scale a channel: [hidden]."""
        return ActivationStatistics(
            tokens=self.tokens, largest=self.largest / scales, gram=self.gram / np.outer(scales, scales)
        )


def read_calibration(path: str | Path | None) -> list[QueryRecord]:
    """Read calibration pairs in the run format; None gives the built-in ones.

    Raises:
        InputError: The file cannot be read, or holds fewer than 16 different pairs.
    """
    records = calibration_pairs() if path is None else read_run(path)
    different = len(set(flatten(records)))
    if different < FEWEST_PAIRS:
        raise InputError(
            f"{path} has too few different pairs to calibrate on", got=different, allowed=f"{FEWEST_PAIRS} or more"
        )
    return records


def calibration_batches(
    records: Sequence[QueryRecord], tokenizer: PairTokenizer, *, pad_token_id: int, input_names: Sequence[str]
) -> list[Batch]:
    """Batches as the runtime would make them of these pairs: the same tokens, the same mix of lengths."""
    pairs = tokenizer.encode_pairs(flatten(records))
    return batches_of(pairs, tokenizer.template, pad_token_id=pad_token_id, input_names=input_names)


def batches_of(pairs: EncodedPairs, template: PairTemplate, *, pad_token_id: int, input_names: Sequence[str]) -> list[Batch]:
    """The same of pairs, or texts, that are encoded already."""
    return [
        collate(pairs, plan, template=template, pad_token_id=pad_token_id, input_names=input_names)
        for plan in plan_batches(pairs.lengths, budget_tokens=CPU_BUDGET_TOKENS)
    ]


def collect_statistics(
    model: ModelProto, widths: dict[str, int], batches: Sequence[Batch]
) -> Iterator[dict[str, ActivationStatistics]]:
    """Run batches and describe activations.

    Args:
        model: A float32 graph.
        widths: The activations to describe, float32 [batch, sequence, hidden], with their hidden size.
        batches: Inputs with an attention mask.

    Yields:
        Statistics by name, for a few activations at a time: a gram takes 8 x hidden^2 bytes. Activations that are not of
        the batch's tokens (a table of relative positions, say) are left out.
    """
    for names in _chunks(widths):
        session = _open_with_outputs(model, names)
        tokens = dict.fromkeys(names, 0)
        elsewhere: set[str] = set()
        largest = {name: np.zeros(widths[name]) for name in names}
        gram = {name: np.zeros((widths[name], widths[name])) for name in names}
        for batch in batches:
            real = batch["attention_mask"].astype(bool)
            for name, value in zip(names, session.run(names, batch), strict=True):
                rows = token_rows(value, real)
                if rows is None:
                    elsewhere.add(name)
                    continue
                tokens[name] += len(rows)
                np.maximum(largest[name], np.abs(rows).max(axis=0), out=largest[name])
                gram[name] += rows.T @ rows
        yield {
            name: ActivationStatistics(tokens=tokens[name], largest=largest[name], gram=gram[name] / max(1, tokens[name]))
            for name in names
            if name not in elsewhere
        }


def token_rows(value: NDArray[np.float32], real: NDArray[np.bool_]) -> NDArray[np.float32] | None:
    """The rows of an activation [batch, sequence, hidden] that stand for tokens, float32 [tokens, hidden].

    Where the last layer was cut to the row that the head reads, [batch, 1, hidden], all rows do. None where the activation
    is not of the batch's tokens: a table of relative positions, say.

    Args:
        value: The activation.
        real: Which tokens are not padding: bool [batch, sequence].
    """
    if value.shape[:2] == real.shape:
        rows: NDArray[np.float32] = value[real]
        return rows
    return value[:, 0] if value.shape[:2] == (len(real), 1) else None


def _chunks(widths: dict[str, int]) -> Iterator[list[str]]:
    chunk: list[str] = []
    size_bytes = 0
    for name, width in widths.items():
        if chunk and size_bytes + 8 * width**2 > _GRAM_BUDGET_BYTES:
            yield chunk
            chunk, size_bytes = [], 0
        chunk.append(name)
        size_bytes += 8 * width**2
    if chunk:
        yield chunk


def _open_with_outputs(model: ModelProto, names: Sequence[str]) -> ort.InferenceSession:
    copy = ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    with tempfile.TemporaryDirectory(prefix="crossforge-") as folder:  # a message of 2 GB cannot be handed over in memory
        path = Path(folder) / "model.onnx"
        save_onnx(copy, path)
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
