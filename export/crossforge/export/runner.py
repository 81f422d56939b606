"""Running a model file over query-passage pairs exactly as the runtime will: its tokenizer, its batches, its session."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto

from crossforge.export.calibration import batches_of
from crossforge.export.onnx import save_onnx
from crossforge.export.options import EXTERNAL_DATA_THRESHOLD_BYTES
from crossforge.export.pairs import flatten
from crossforge.profiles import Embedding, ExecutionProvider, Precision, Scoring
from crossforge.runtime.activation import Floats
from crossforge.runtime.batching import Batch
from crossforge.runtime.loading import open_model
from crossforge.runtime.machine import usable_cores
from crossforge.runtime.progress import Stage
from crossforge.runtime.records import QueryRecord
from crossforge.runtime.scoring import compute_logits
from crossforge.runtime.similarity import compare_pairwise
from crossforge.runtime.tokenization import EncodedPairs, PairTokenizer

_ROUNDS = 5


@dataclass(frozen=True, kw_only=True)
class ModelRunner:
    """Runs models that share a tokenizer.

    Args:
        tokenizer: The bundle's tokenizer.
        labels: Columns of the model's output.
        pad_token_id: Fills rows up to a batch's length.
        external_data_threshold_bytes: Weights of this size or more are written beside the model.
    """

    tokenizer: PairTokenizer
    labels: int
    pad_token_id: int
    external_data_threshold_bytes: int = EXTERNAL_DATA_THRESHOLD_BYTES

    def run_file(
        self,
        path: Path,
        records: Sequence[QueryRecord],
        stage: Stage | None = None,
        *,
        provider: ExecutionProvider = ExecutionProvider.CPU,
        precision: Precision = Precision.FP32,
    ) -> Floats:
        """Logits of a model file, float32 [pairs, labels], in the order of ``records``."""
        pairs = self._encode(records)
        stage = stage or Stage()
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            stage.advance(done, len(pairs))

        workers = usable_cores() if provider.is_cpu else 1
        session = open_model(path, provider, precision=precision, labels=self.labels, lanes=workers)
        with ThreadPoolExecutor(workers) as executor:
            logits, _ = compute_logits(
                session,
                pairs,
                template=self.tokenizer.template,
                pad_token_id=self.pad_token_id,
                labels=self.labels,
                workers=workers,
                executor=executor,
                on_batch=advance,
            )
        session.close()
        return self._score(logits, records)

    def run(self, model: ModelProto, records: Sequence[QueryRecord]) -> Floats:
        """Logits of a model that has no file yet, float32 [pairs, labels]."""
        with self._saved(model) as path:
            return self.run_file(path, records)

    def slowdown(self, model: ModelProto, baseline: ModelProto, records: Sequence[QueryRecord]) -> float:
        """How many times as long as a baseline a model takes, loading included: medians of runs in turns."""
        seconds: dict[Path, list[float]] = {}
        with self._saved(model) as path, self._saved(baseline) as baseline_path:
            for _ in range(_ROUNDS):
                for file in (path, baseline_path):
                    start = time.perf_counter()
                    self.run_file(file, records)
                    seconds.setdefault(file, []).append(time.perf_counter() - start)
            return statistics.median(seconds[path]) / statistics.median(seconds[baseline_path])

    def batches(self, model: ModelProto, records: Sequence[QueryRecord]) -> list[Batch]:
        """Pairs as a model's inputs."""
        names = [value.name for value in model.graph.input]
        encoded = self._encode(records)
        return batches_of(encoded, self.tokenizer.template, pad_token_id=self.pad_token_id, input_names=names)

    def _encode(self, records: Sequence[QueryRecord]) -> EncodedPairs:
        return self.tokenizer.encode_pairs(flatten(records))

    def _score(self, answers: Floats, records: Sequence[QueryRecord]) -> Floats:  # noqa: ARG002
        """From what the model answered to what it was asked for."""
        return answers

    @contextmanager
    def _saved(self, model: ModelProto) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="crossforge-") as folder:
            path = Path(folder) / "model.onnx"
            save_onnx(model, path, external_data_threshold_bytes=self.external_data_threshold_bytes)
            yield path


@dataclass(frozen=True, kw_only=True)
class EmbeddingRunner(ModelRunner):
    """Runs bi-encoders: each different text once, and the score of a pair is the similarity of its texts.

    Args:
        embedding: The prompts and the similarity.
    """

    embedding: Embedding

    def _encode(self, records: Sequence[QueryRecord]) -> EncodedPairs:
        return self.tokenizer.encode_texts(list(self._positions(records)))

    def _score(self, answers: Floats, records: Sequence[QueryRecord]) -> Floats:
        positions = self._positions(records)
        q = [positions[self.embedding.query_prompt + query] for query, _ in flatten(records)]
        p = [positions[self.embedding.passage_prompt + passage] for _, passage in flatten(records)]
        return compare_pairwise(answers[q], answers[p], self.embedding.similarity)[:, None]

    def _positions(self, records: Sequence[QueryRecord]) -> dict[str, int]:
        """The different texts, prompts included, with their places among the answers."""
        prompts = (self.embedding.query_prompt, self.embedding.passage_prompt)
        texts = dict.fromkeys(prompt + text for pair in flatten(records) for prompt, text in zip(prompts, pair, strict=True))
        return {text: i for i, text in enumerate(texts)}


def make_runner(
    tokenizer: PairTokenizer,
    scoring: Scoring,
    embedding: Embedding | None,
    *,
    pad_token_id: int,
    external_data_threshold_bytes: int = EXTERNAL_DATA_THRESHOLD_BYTES,
) -> ModelRunner:
    """The runner of a cross-encoder, or of a bi-encoder where there is an embedding."""
    if embedding is None:
        return ModelRunner(
            tokenizer=tokenizer,
            labels=len(scoring.labels),
            pad_token_id=pad_token_id,
            external_data_threshold_bytes=external_data_threshold_bytes,
        )
    return EmbeddingRunner(
        tokenizer=tokenizer,
        labels=embedding.dimension,
        pad_token_id=pad_token_id,
        external_data_threshold_bytes=external_data_threshold_bytes,
        embedding=embedding,
    )
