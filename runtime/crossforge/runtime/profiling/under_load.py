"""Latency under load as a report: of a bundle in this process, or of a service behind a URL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from crossforge.profiles import DeploymentProfile, InputError
from crossforge.runtime.bundle import TOKENIZER_NAME, Bundle
from crossforge.runtime.machine import inspect_machine
from crossforge.runtime.precision import AUTO
from crossforge.runtime.profiling.batcher_target import batcher_target
from crossforge.runtime.profiling.load import MakeTarget, measure_load
from crossforge.runtime.profiling.load_report import LoadCurve, LoadRun, Slo
from crossforge.runtime.profiling.max_rate import measure_max_rate
from crossforge.runtime.profiling.options import ProfileOptions
from crossforge.runtime.profiling.profiler import package_versions
from crossforge.runtime.profiling.report import LatencyReport
from crossforge.runtime.profiling.requests import QUERY
from crossforge.runtime.profiling.service_target import service_target
from crossforge.runtime.profiling.texts import compose_texts
from crossforge.runtime.profiling.workload import Call, plan_workload
from crossforge.runtime.progress import Progress, Silent
from crossforge.runtime.prompts import open_tokenizer
from crossforge.runtime.records import Passage, QueryRecord, read_run
from crossforge.runtime.reranker import Reranker
from crossforge.runtime.tokenization import PairTokenizer

_WORDS = 90
"""Of a built-in passage, where no tokenizer is there to count tokens; with a query they make about 128."""


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """A run of requests that wait for no answer."""

    rates_per_s: tuple[float, ...] = ()
    """Requests a second, one run each; none looks for the highest rate within ``slo``."""
    slo: Slo | None = None
    """What is to be kept."""
    duration_s: float = 10.0
    """How long requests come at each rate."""
    url: str | None = None
    """A service to send them to; None takes the micro-batcher of this process."""

    def __post_init__(self) -> None:
        if not self.rates_per_s and self.slo is None:
            raise InputError("load needs a rate, or a latency to look for the highest rate within")
        if self.rates_per_s and not min(self.rates_per_s) > 0:
            raise InputError("a rate is not positive", got=min(self.rates_per_s), allowed="requests a second, above 0")
        if not self.duration_s > 0:
            raise InputError("the duration is not positive", got=self.duration_s, allowed="seconds, above 0")


def measure_under_load(
    path: str | Path | None, options: ProfileOptions, load: LoadOptions, *, progress: Progress | None = None
) -> LatencyReport:
    """Send requests at each rate, or look for the highest rate within a latency.

    Args:
        path: The bundle. With a URL it only counts the tokens of what is sent, and may be None.
        options: The requests (a run, or one cell of a grid), and the variant, provider or deployment profile to load.
        load: Rates, and where to send them.
        progress: Told of each stage.

    Returns:
        A report without rows, whose ``load`` has every run.

    Raises:
        InputError: More than one variant, provider or cell is named, or a file or the URL cannot be used.
        ServiceError: Nothing answers at the URL, or not as a reranker.
    """
    if max(map(len, (options.providers, options.precisions))) > 1:
        raise InputError("load is measured on one variant and one provider", fix="Name one --precision and one --provider.")
    if path is None and load.url is None:
        raise InputError("there is nothing to measure", allowed="a bundle, or the URL of a service")
    bundle = None if path is None else Bundle.open(path)
    if bundle is not None:
        bundle.provide((TOKENIZER_NAME,))
    with _open_target(bundle, options, load.url) as (make_target, service, requests):
        runs = _measure(make_target, load, progress or Silent())
    return LatencyReport(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        source=service if bundle is None else bundle.manifest.source.id,
        weights_sha256=None if bundle is None else bundle.manifest.source.weights_sha256,
        machine=inspect_machine(),
        versions=package_versions(),
        peak_resident_bytes=None,
        import_ms=None,
        variants=(),
        rows=(),
        skipped=(),
        load=LoadCurve(service=service, requests=requests, slo=load.slo, runs=runs),
    )


@contextmanager
def _open_target(bundle: Bundle | None, options: ProfileOptions, url: str | None) -> Iterator[tuple[MakeTarget, str, str]]:
    """What makes targets, what it is called, and what is sent."""
    if url is not None:
        tokenizer = None if bundle is None else _tokenizer(bundle)
        records, requests = plan_requests(options, tokenizer)
        yield partial(service_target, url, records), url, requests
    elif bundle is not None:
        with Reranker.load(
            bundle,
            provider=options.providers[0] if options.providers else AUTO,
            precision=options.precisions[0] if options.precisions else AUTO,
            deployment=None if options.deployment is None else DeploymentProfile.from_toml(options.deployment),
        ) as reranker:
            records, requests = plan_requests(options, reranker.tokenizer)
            by = "" if options.deployment is None else f" by {options.deployment.name}"
            yield (
                partial(batcher_target, reranker, records),
                f"{reranker.precision} on {reranker.session.provider}{by}",
                requests,
            )


def _measure(make_target: MakeTarget, load: LoadOptions, progress: Progress) -> tuple[LoadRun, ...]:
    runs = []
    for rate_per_s in load.rates_per_s:
        with progress.stage(f"{rate_per_s:g} requests a second") as stage:
            runs.append(measure_load(make_target, rate_per_s=rate_per_s, duration_s=load.duration_s))
            stage.note = f"{len(runs[-1].outcomes)} requests in {load.duration_s:g} s"
    if not runs and load.slo is not None:
        with progress.stage("look for the highest rate") as stage:
            found = measure_max_rate(make_target, load.slo, duration_s=load.duration_s)
            stage.note = f"{len(found.trials)} trials of {load.duration_s:g} s or more"
        return found.trials
    return tuple(runs)


def plan_requests(options: ProfileOptions, tokenizer: PairTokenizer | None) -> tuple[list[QueryRecord], str]:
    """The requests to send, and what they are: a run's, or those of a grid's single cell.

    Args:
        options: Says which.
        tokenizer: Counts the tokens of a grid's texts; without one, texts have a fixed number of words.

    Raises:
        InputError: The grid has several cells, or the run cannot be used.
    """
    if options.workload is not None:
        records = [record for record in read_run(options.workload) if record.passages]
        if not records:
            raise InputError(f"{options.workload} holds no pair", allowed="a query with one passage or more")
        queries = "1 query" if len(records) == 1 else f"{len(records)} queries"
        return records, f"{queries} of {options.workload.name}"
    if tokenizer is None:
        calls, what = _calls_by_words(options.candidates)
    else:
        cells, _ = plan_workload(options, tokenizer)
        calls, what = [call for cell in cells for call in cell.calls], str(cells[0])
    if len(calls) > 1:
        raise InputError(
            "load is measured on one kind of request",
            got=f"{len(calls)} cells of a grid",
            fix="Name one number with --candidates and one with --lengths, or a run with --workload.",
        )
    passages = tuple(Passage(id=str(i), text=text) for i, text in enumerate(calls[0].passages))
    return [QueryRecord(qid="0", query=calls[0].query, passages=passages)], what


def _calls_by_words(candidates: Sequence[int]) -> tuple[list[Call], str]:
    texts = compose_texts(lambda texts: [len(text.split()) for text in texts], _WORDS, max(candidates))
    calls = [Call(query=QUERY, passages=texts[:count], lengths=(_WORDS,) * count) for count in candidates]
    return calls, f"{candidates[0]} candidates of {_WORDS} words"


def _tokenizer(bundle: Bundle) -> PairTokenizer:
    manifest = bundle.manifest
    return open_tokenizer(bundle.path, manifest)
