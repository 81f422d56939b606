"""Where settings meet the machine: sessions stay open between measurements, so that settings can be run in turns."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from crossforge.profiles import CostModel, EngineError, ExecutionProvider, Precision, Workload
from crossforge.runtime.batching import collate, plan_batches
from crossforge.runtime.bundle import Bundle
from crossforge.runtime.profiling.cost import CostSample, batch_runner, measure_costs, shape_grid
from crossforge.runtime.profiling.requests import request_of_lengths, typical_request
from crossforge.runtime.profiling.settings import Setting
from crossforge.runtime.reranker import Reranker
from crossforge.runtime.tokenization import EncodedPairs

_COST_ROUNDS = 25


class Bench(Protocol):
    """Measures settings. Whoever made it closes it."""

    def latency_ms(self, setting: Setting, cost: CostModel | None = None) -> float:
        """The time of one typical request, tokenized already."""
        ...

    def cost_samples(self, setting: Setting, budget_s: float) -> Sequence[CostSample]:
        """Times of batches of many shapes."""
        ...

    def resident_bytes(self, setting: Setting) -> int:
        """The most memory that a fresh process held while it loaded the bundle and ran a request."""
        ...


class LocalBench:
    """This machine.

    Args:
        bundle: What to run.
        workload: What a typical request is like.
    """

    def __init__(self, bundle: Bundle, workload: Workload) -> None:
        self._bundle = bundle
        self._workload = workload
        self._request: EncodedPairs | None = None
        self._rerankers: dict[tuple[ExecutionProvider, Precision, int], Reranker] = {}
        self._pools: dict[int, ThreadPoolExecutor] = {}

    def latency_ms(self, setting: Setting, cost: CostModel | None = None) -> float:
        """See :meth:`Bench.latency_ms`."""
        reranker = self._reranker(setting)
        if self._request is None:
            self._request = typical_request(self._workload, reranker.tokenizer)
        start = time.perf_counter()
        reranker.compute_logits(
            self._request,
            budget_tokens=setting.budget_tokens,
            workers=setting.workers,
            cost=cost,
            executor=self._pool(setting.workers),
        )
        return (time.perf_counter() - start) * 1e3

    def cost_samples(self, setting: Setting, budget_s: float) -> Sequence[CostSample]:
        """See :meth:`Bench.cost_samples`."""
        reranker, manifest = self._reranker(setting), self._bundle.manifest
        longest = manifest.truncation.max_length
        pairs = request_of_lengths([longest], reranker.tokenizer)
        (plan,) = plan_batches(pairs.lengths, budget_tokens=longest)
        names = reranker.session.input_names
        row = collate(pairs, plan, template=manifest.pair_template, pad_token_id=manifest.pad_token_id, input_names=names)
        shapes = shape_grid(budget_tokens=setting.budget_tokens, max_length=plan.sequence_length)
        if reranker.profiles:
            shapes = [shape for shape in shapes if any(profile.fits(*shape) for profile in reranker.profiles)]
        run = batch_runner(reranker.session, row=row, workers=setting.workers, executor=self._pool(setting.workers))
        return measure_costs(run, shapes, rounds=_COST_ROUNDS, budget_s=budget_s)

    def resident_bytes(self, setting: Setting) -> int:
        """See :meth:`Bench.resident_bytes`."""
        with tempfile.TemporaryDirectory() as folder:
            profile = Path(folder) / "deployment.toml"
            profile.write_text(setting.deployment().to_toml(), encoding="utf-8")
            done = subprocess.run(
                [sys.executable, "-m", "crossforge.runtime.profiling.footprint", str(self._bundle.path), str(profile)],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
                capture_output=True,
                text=True,
                check=False,
            )
        if done.returncode:
            raise EngineError(f"{setting} does not run in a fresh process", got=done.stderr.strip().rpartition("\n")[2])
        return int(done.stdout)

    def close(self) -> None:
        """Free the sessions and their threads."""
        for pool in self._pools.values():
            pool.shutdown()
        for reranker in self._rerankers.values():
            reranker.close()

    def __enter__(self) -> LocalBench:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _reranker(self, setting: Setting) -> Reranker:
        """Some sessions serve any number of workers; the lanes of others are made when they are loaded."""
        lanes = 1 if setting.provider.serves_any_workers else setting.workers
        key = (setting.provider, setting.precision, lanes)
        if key not in self._rerankers:
            self._rerankers[key] = Reranker.load(
                self._bundle, provider=setting.provider, strict=True, deployment=setting.deployment()
            )
        return self._rerankers[key]

    def _pool(self, workers: int) -> ThreadPoolExecutor | None:
        if workers == 1:
            return None
        return self._pools.setdefault(workers, ThreadPoolExecutor(workers, thread_name_prefix="crossforge-bench"))
