"""A file of pairs in, a file of scores out: planned, scored in shards by whoever is given, joined in order."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from crossforge.profiles import MANIFEST_NAME, DeploymentProfile, ExecutionProvider, InputError
from crossforge.profiles.jsonio import encode
from crossforge.runtime.bundle import Bundle, sha256_of
from crossforge.runtime.decision import decide
from crossforge.runtime.distributed.formats import find_files, format_of
from crossforge.runtime.distributed.job import JobFolder, unfinished
from crossforge.runtime.distributed.scorer import Receipt, ShardScorer, ShardWork, peak_memory_mb
from crossforge.runtime.distributed.settings import BulkSettings
from crossforge.runtime.distributed.shards import cut_shards
from crossforge.runtime.distributed.tally import Summary, Tally
from crossforge.runtime.machine import inspect_machine, installed_versions, usable_cores
from crossforge.runtime.precision import AUTO
from crossforge.runtime.progress import Progress, Silent
from crossforge.runtime.scoring import default_budget_tokens

_ENGINES = ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx", "tokenizers", "pyarrow")


class Runner(Protocol):
    """Who scores the shards."""

    def run(self, work: ShardWork, shards: NDArray[np.int64]) -> Iterator[Receipt]:
        """Score these shards in any order, and tell of each as it is done."""
        ...


class LocalRunner:
    """This process, with one reranker.

    Args:
        threads: Batches that run at the same time; None takes one a core on the CPU, and one on a GPU.
    """

    def __init__(self, threads: int | None = None) -> None:
        self._threads = threads

    def run(self, work: ShardWork, shards: NDArray[np.int64]) -> Iterator[Receipt]:
        """See :meth:`Runner.run`."""
        if not len(shards):
            return
        threads = self._threads or (usable_cores() if ExecutionProvider(work.provider).is_cpu else 1)
        with ShardScorer(work, threads=threads) as scorer:
            for shard in shards.tolist():
                if (receipt := scorer.score(shard)) is not None:
                    yield receipt


def job_folder_of(output: Path) -> Path:
    """Where a job keeps its parts until it is done: beside its output."""
    return output.with_name(f"{output.name}.parts")


def score_file(
    bundle: str | Path,
    source: str | Path,
    output: str | Path,
    *,
    settings: BulkSettings | None = None,
    runner: Runner | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Summary:
    """Score every pair of a file, in memory that does not grow with it.

    A run that was killed goes on where it stopped when it is called again in the same way; the file that comes out is the
    same, byte for byte, whoever ran it and however often it was stopped.

    Args:
        bundle: The bundle's folder, or its name on the hub.
        source: JSON lines or Parquet with ``query`` and ``passage`` (or ``text``), or a folder of such files.
        output: What is written, in the format of the input: its other fields, with ``score`` and ``truncated``, a record for
            each of the input's, in its order. Parts are kept in ``output.parts`` until it is done.
        settings: What decides on the scores.
        runner: Who scores; this process, unless it is a :class:`~crossforge.runtime.distributed.ray_data.RayRunner`.
        progress: Told of the stages.
        say: Takes a line every few seconds while pairs are scored.

    Raises:
        InputError: The input cannot be used, the output exists, or a job that was begun there is another one.
        CrossforgeError: As :meth:`Reranker.load` and :meth:`Reranker.score_pairs`.
    """
    settings, progress = settings or BulkSettings(), progress or Silent()
    output, files = Path(output).resolve(), find_files(Path(source))
    records = format_of(files[0])
    if output.suffix != files[0].suffix:
        raise InputError("input and output have different formats", got=output.name, allowed=f"a name in {files[0].suffix}")
    job = JobFolder(path=job_folder_of(output), suffix=output.suffix)
    if output.exists() and not job.path.exists():
        raise InputError(f"{output} exists", fix="Delete it, or write to another name.")
    opened = Bundle.open_whole(bundle)
    opened.refuse_bi_encoder("bulk scoring")
    if opened.manifest.scoring.ranking_label is None:
        raise InputError(
            "this model classifies pairs and has no label that ranks", fix="Export it again with --ranking-label."
        )
    provider, precision, deployment = _decide(opened, settings)
    budget = deployment.budget_tokens or default_budget_tokens(ExecutionProvider(provider))
    with job.locked():
        with progress.stage("read the input") as stage:
            table = cut_shards((records.scan(file) for file in files), shard_pairs=settings.shard_pairs)
            stage.note = f"{table.pairs:,} pairs in {len(table):,} shards"
        identity = {
            "bundle": sha256_of(opened.path / MANIFEST_NAME),
            "input": _digest(files),
            "settings": {
                "provider": provider,
                "precision": precision,
                "budget_tokens": budget,
                "activation": settings.activation,
                "shard_pairs": settings.shard_pairs,
                "gpu": encode(deployment.gpu),
            },
            "versions": [f"crossforge {importlib.metadata.version('crossforge')}", *installed_versions(_ENGINES)],
        }
        job.begin(identity, table)
        pending = job.pending(len(table))
        left = int(table.rows[pending, 4].sum())
        work = ShardWork(
            job=job,
            files=files,
            bundle=opened.path.resolve(),
            provider=provider,
            precision=precision,
            deployment=deployment,
            budget_tokens=budget,
            activation=settings.activation,
        )
        with progress.stage("score") as stage:
            tally = Tally(total=table.pairs, done=table.pairs - left, say=say)
            for receipt in (runner or LocalRunner()).run(work, pending):
                tally.add(receipt)
                stage.advance(tally.done + tally.scored, tally.total)
            stage.note = f"{tally.pairs_per_s:,.0f} pairs/s, {tally.padding_waste:.1%} padding"
            seconds = tally.seconds
        with progress.stage("join the parts"), unfinished(output) as writing:
            records.merge(((job.part(shard), table[shard].pairs) for shard in range(len(table))), writing)
        job.remove()
    return Summary(
        output=str(output),
        pairs=table.pairs,
        shards=len(table),
        resumed_shards=len(table) - len(pending),
        scored_pairs=tally.scored,
        truncated_pairs=tally.truncated,
        seconds=seconds,
        pairs_per_s=tally.scored / seconds if seconds else 0.0,
        worker_seconds=tally.worker_seconds,
        padding_waste=tally.padding_waste,
        workers=len(tally.workers),
        driver_peak_mb=peak_memory_mb(),
        worker_peak_mb=tally.worker_peak_mb,
        provider=provider,
        precision=precision,
    )


def _decide(bundle: Bundle, settings: BulkSettings) -> tuple[str, str, DeploymentProfile]:
    """What every worker is to run: chosen once, here, so that no worker chooses otherwise."""
    deployment = settings.deployment or DeploymentProfile()
    precision = settings.precision
    if precision == AUTO and deployment.precision is not None:
        precision = deployment.precision
    if settings.provider != AUTO and precision != AUTO:  # the workers may have what this machine has not
        if precision not in bundle.manifest.variants:
            raise InputError(
                f"the bundle has no {precision} variant", got=precision, allowed=", ".join(bundle.manifest.variants)
            )
        if settings.provider not in set(ExecutionProvider):
            raise InputError("unknown provider", got=settings.provider, allowed=", ".join([AUTO, *ExecutionProvider]))
        return settings.provider, precision, deployment
    decision = decide(
        bundle,
        inspect_machine(),
        provider=settings.provider,
        precision=precision,
        order=deployment.providers,
        strict=True,
    )
    chosen = decision.choice.precision
    return str(decision.plan.chosen), str(chosen), replace(deployment, precision=chosen)


def _digest(files: tuple[Path, ...]) -> str:
    """Of the files' names and contents. A folder may be moved."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0{sha256_of(file)}\n".encode())
    return digest.hexdigest()
