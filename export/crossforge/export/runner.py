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

from crossforge.export.calibration import calibration_batches
from crossforge.export.onnx import save_onnx
from crossforge.export.options import EXTERNAL_DATA_THRESHOLD_BYTES
from crossforge.export.pairs import flatten
from crossforge.profiles import ExecutionProvider, Precision
from crossforge.runtime.activation import Floats
from crossforge.runtime.batching import Batch
from crossforge.runtime.loading import open_model
from crossforge.runtime.machine import usable_cores
from crossforge.runtime.progress import Stage
from crossforge.runtime.records import QueryRecord
from crossforge.runtime.scoring import compute_logits
from crossforge.runtime.tokenization import PairTokenizer

_ROUNDS = 5


@dataclass(frozen=True, kw_only=True)
class ModelRunner:
    """Runs models that share a tokenizer.

    Args:
        tokenizer: The bundle's tokenizer.
        labels: Columns of the logits.
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
        pairs = self.tokenizer.encode_pairs(flatten(records))
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
        return logits

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
        return calibration_batches(records, self.tokenizer, pad_token_id=self.pad_token_id, input_names=names)

    @contextmanager
    def _saved(self, model: ModelProto) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="crossforge-") as folder:
            path = Path(folder) / "model.onnx"
            save_onnx(model, path, external_data_threshold_bytes=self.external_data_threshold_bytes)
            yield path
