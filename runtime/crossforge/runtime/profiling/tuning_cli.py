"""Commands that choose how a bundle is run: ``tune`` by measuring, ``plan`` by predicting."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from crossforge.profiles import DEFAULT_WORKLOAD, DeploymentProfile, InputError
from crossforge.runtime.cli_options import (
    BundleArgument,
    DebugOption,
    JsonOption,
    RequiredDeploymentOption,
    bytes_of,
)
from crossforge.runtime.console import TerminalProgress, err, handles_errors, out, print_json

app = typer.Typer(add_completion=False)


@app.command()
@handles_errors
def tune(
    bundle: BundleArgument,
    workload: Annotated[
        Path | None,
        typer.Option(help="A run (JSON lines) to take lengths and candidates from.", show_default="built-in figures"),
    ] = None,
    max_ndcg_loss: Annotated[
        float | None, typer.Option(help="Most nDCG@10 that a variant may lose, by the manifest.")
    ] = None,
    min_kendall_tau: Annotated[
        float | None, typer.Option(help="Least agreement of a variant's ranking, by the manifest.")
    ] = None,
    max_memory: Annotated[float | None, typer.Option(help="Most memory that a process may hold, in MB.")] = None,
    budget: Annotated[float, typer.Option(help="Seconds of measurement, about.")] = 120,
    target: Annotated[Path, typer.Option("--out", help="The deployment profile to write.")] = Path("deployment.toml"),
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Find the fastest setting on this machine by measuring, and write it as a deployment profile."""
    from crossforge.runtime.bundle import Bundle
    from crossforge.runtime.machine import inspect_machine
    from crossforge.runtime.profiling.bench import LocalBench
    from crossforge.runtime.profiling.settings import QualityLimits
    from crossforge.runtime.profiling.space import find_space
    from crossforge.runtime.profiling.tuning import TuningOptions, explain
    from crossforge.runtime.profiling.tuning import tune as run_tuning
    from crossforge.runtime.prompts import open_tokenizer
    from crossforge.runtime.records import read_run
    from crossforge.runtime.workload import workload_from_records

    if target.is_dir() or not target.parent.is_dir():  # better known before minutes of measurement than after
        raise InputError(
            "the deployment profile cannot be written there", got=target, allowed="a file in a folder that exists"
        )
    opened = Bundle.open_whole(bundle)
    opened.refuse_bi_encoder("what is tuned")
    manifest = opened.manifest
    work = DEFAULT_WORKLOAD
    if workload is not None:
        tokenizer = open_tokenizer(opened.path, manifest)
        work = workload_from_records(read_run(workload), tokenizer)
    options = TuningOptions(
        workload=work,
        limits=QualityLimits(max_ndcg_loss=max_ndcg_loss, min_kendall_tau=min_kendall_tau),
        max_memory_bytes=None if max_memory is None else bytes_of(max_memory, "--max-memory"),
        budget_s=budget,
    )
    space = find_space(opened, inspect_machine(), options.limits)
    with LocalBench(opened, work) as bench:
        report = run_tuning(space, bench, options, progress=TerminalProgress())
    try:
        target.write_text(report.deployment.to_toml(), encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write the deployment profile {target} ({error.strerror or error})") from error
    lines = explain(report)
    if as_json:
        print_json(
            {
                "deployment": {"path": str(target), **asdict(report.setting)},
                "default": report.default,
                "is_default": report.setting == report.default,
                "comparison": report.comparison,
                "cost": report.cost,
                "resident_bytes": report.resident_bytes,
                "trials": [
                    {**asdict(t.setting), "median_ms": t.median_ms, "samples_ms": t.samples_ms} for t in report.trials
                ],
                "skipped": report.skipped,
                "explanation": lines,
            }
        )
        return
    for item in report.skipped:
        err.print(f"[dim]not {escape(item.what)}: {escape(item.why)}[/]")
    for line in lines:
        out.print(escape(line))
    out.print(f"Written to {escape(str(target))}; use it with --deployment {escape(str(target))}")


@app.command()
@handles_errors
def plan(
    bundle: BundleArgument,
    deployment: RequiredDeploymentOption,
    candidates: Annotated[int, typer.Option(help="Passages of a query.")] = 100,
    length: Annotated[int, typer.Option(help="Tokens of each pair.")] = 128,
    slo_ms: Annotated[float | None, typer.Option(help="How long a query may take, in milliseconds.")] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Predict a query's latency, and how many candidates fit a time, from a deployment profile's cost model."""
    from crossforge.runtime.bundle import Bundle
    from crossforge.runtime.profiling.capacity import MOST_CANDIDATES, plan_capacity

    opened, profile = Bundle.open(bundle), DeploymentProfile.from_toml(deployment)
    opened.refuse_bi_encoder("what is planned")
    manifest = opened.manifest
    if length > manifest.truncation.max_length:
        raise InputError("the pairs are longer than the model reads", got=length, allowed=manifest.truncation.max_length)
    if profile.precision is not None and profile.precision not in manifest.variants:
        raise InputError(
            f"{deployment} is for a variant that the bundle has not",
            got=profile.precision,
            allowed=", ".join(manifest.variants),
        )
    capacity = plan_capacity(profile, candidates=candidates, sequence_length=length, slo_ms=slo_ms)
    if as_json:
        print_json(capacity)
        return
    batches = "1 batch" if capacity.batches == 1 else f"{capacity.batches} batches"
    out.print(
        f"{candidates:,} candidates of {length} tokens: {capacity.predicted_ms:.1f} ms predicted, in {batches} "
        f"({capacity.precision} on {capacity.provider}, workers: {capacity.workers})"
    )
    if capacity.most_candidates is not None:
        more = " or more" if capacity.most_candidates == MOST_CANDIDATES else ""
        verdict = "they fit" if capacity.fits else "they do not fit"
        out.print(f"In {slo_ms:g} ms {verdict}; the most that do: {capacity.most_candidates:,}{more}")
    err.print("[dim]Without the time to tokenize, which is not in the model.[/]")
