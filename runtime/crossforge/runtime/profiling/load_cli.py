"""``profile --rate`` and ``profile --slo-ms``: latency under load, and the highest rate that keeps within a latency."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer
from rich.markup import escape
from rich.table import Table

from crossforge.profiles import InputError
from crossforge.runtime.console import out, print_json
from crossforge.runtime.profiling.load import MaxRate, Slo, measure_load, measure_max_rate
from crossforge.runtime.profiling.load_report import LoadReport, Outcome
from crossforge.runtime.profiling.options import ProfileOptions
from crossforge.runtime.profiling.workload import plan_workload
from crossforge.runtime.progress import Progress
from crossforge.runtime.records import Passage, QueryRecord
from crossforge.runtime.reranker import Reranker
from crossforge.runtime.tokenization import PairTokenizer


def profile_load(
    bundle: Path,
    options: ProfileOptions,
    *,
    rate_per_s: float | None = None,
    duration_s: float,
    slo_ms: float | None = None,
    output: Path,
    as_json: bool,
    progress: Progress,
) -> None:
    """Send requests at a rate, or look for the highest rate within a latency, and print what came of it.

    Args:
        bundle: The bundle's folder.
        options: The requests (a run, or one cell of a grid), and the variant and provider to load.
        rate_per_s: Mean number of requests a second; None looks for the highest.
        duration_s: How long requests come, or come at least in each trial.
        slo_ms: What 99 of 100 requests must not exceed.
        output: Where the raw samples go.
        as_json: Print one JSON document instead of a table.
        progress: Told of each stage.

    Raises:
        InputError: More than one variant, provider or cell is named, or neither a rate nor a latency.
        Exit: With status 1: the rate does not keep within ``slo_ms``, or no rate does.
    """
    if max(map(len, (options.providers, options.precisions))) > 1:
        raise InputError("load is measured on one variant and one provider", fix="Name one --precision and one --provider.")
    with Reranker.load(
        bundle,
        provider=options.providers[0] if options.providers else "auto",
        precision=options.precisions[0] if options.precisions else "auto",
    ) as reranker:
        records = requests_of(options, reranker.tokenizer)
        found: MaxRate | None = None
        trials: Sequence[LoadReport]
        if rate_per_s is not None:
            with progress.stage(f"send {rate_per_s:g} requests a second for {duration_s:g} s") as stage:
                trials = (measure_load(reranker, records, rate_per_s=rate_per_s, duration_s=duration_s),)
                stage.note = f"{len(trials[0].outcomes)} requests"
            passed = slo_ms is None or Slo(latency_ms=slo_ms).is_met_by(trials[0])
        elif slo_ms is not None:
            with progress.stage(f"look for the highest rate, {duration_s:g} s or more a trial") as stage:
                found = measure_max_rate(reranker, records, Slo(latency_ms=slo_ms), duration_s=duration_s)
                trials = found.trials
                stage.note = f"{len(trials)} trials"
            passed = found.rate_per_s > 0
        else:
            raise InputError("load needs a rate, or a latency to look for the highest one within")
        runs = f"{reranker.precision} on {reranker.session.provider}"
    output.write_text("[" + ",\n".join(trial.to_json().strip() for trial in trials) + "]\n", encoding="utf-8")
    if as_json:
        print_json({"load": trials[0].figures()} if found is None else {"max_rate": found.figures()})
    else:
        _print(trials, found, runs, slo_ms, output)
    if not passed:
        raise typer.Exit(1)


def requests_of(options: ProfileOptions, tokenizer: PairTokenizer) -> list[QueryRecord]:
    """The requests to send: a run's, or those of a grid's single cell.

    Raises:
        InputError: The grid has several cells, or the run cannot be used.
    """
    cells, _ = plan_workload(options, tokenizer)
    if options.workload is None and len(cells) > 1:
        raise InputError(
            "load is measured on one kind of request",
            got=f"{len(cells)} cells of a grid",
            fix="Name one number with --candidates and one with --lengths, or a run with --workload.",
        )
    calls = [call for cell in cells for call in cell.calls]
    return [
        QueryRecord(
            qid=str(number),
            query=call.query,
            passages=tuple(Passage(id=str(i), text=text) for i, text in enumerate(call.passages)),
        )
        for number, call in enumerate(calls)
    ]


def _print(trials: Sequence[LoadReport], found: MaxRate | None, runs: str, slo_ms: float | None, output: Path) -> None:
    table = Table("requests/s", "sent", "answered/s", "p50 ms", "p90 ms", "p99 ms", "not answered", box=None)
    for trial in trials:
        percentiles = (trial.percentile_ms(percent) for percent in (50, 90, 99))
        unanswered = len(trial.outcomes) - trial.count(Outcome.ANSWERED)
        table.add_row(
            f"{trial.rate_per_s:.2f}",
            str(len(trial.outcomes)),
            f"{trial.achieved_per_s:.2f}",
            *("-" if value is None else f"{value:.1f}" for value in percentiles),
            str(unanswered),
        )
    out.print(table)
    out.print(f"{runs}; latency counts from when each request was due. Every sample is in {escape(str(output))}.")
    if found is not None:
        answer = f"{found.rate_per_s:.2f} requests a second keep" if found.rate_per_s else "No rate keeps"
        out.print(f"{answer} 99 of 100 within {slo_ms:g} ms.")
