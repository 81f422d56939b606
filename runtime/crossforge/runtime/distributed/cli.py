"""The command ``bulk``."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from crossforge.profiles import InputError
from crossforge.runtime.cli_options import (
    ActivationOption,
    BundleArgument,
    DebugOption,
    DeploymentOption,
    JsonOption,
    PrecisionOption,
    ProviderOption,
    read_deployment,
)
from crossforge.runtime.console import TerminalProgress, err, handles_errors, out, print_json
from crossforge.runtime.distributed.settings import BulkSettings, RaySettings

app = typer.Typer(add_completion=False)


@app.command()
@handles_errors
def bulk(
    bundle: BundleArgument,
    source: Annotated[
        Path,
        typer.Argument(metavar="INPUT", help="JSON lines or Parquet with query and passage, or a folder of them."),
    ],
    output: Annotated[Path, typer.Argument(help="What is written, in the input's format.")],
    ray: Annotated[bool, typer.Option("--ray", help="Score with actors on Ray instead of in this process.")] = False,
    address: Annotated[
        str | None, typer.Option(help="A Ray cluster's; local starts one.", show_default="what Ray finds, or a new one")
    ] = None,
    actors: Annotated[int | None, typer.Option(help="Rerankers at once on Ray.", show_default="what fits")] = None,
    cpus_per_actor: Annotated[int, typer.Option(help="Cores of an actor.")] = 1,
    gpus_per_actor: Annotated[float, typer.Option(help="GPUs of an actor.")] = 0.0,
    shard_pairs: Annotated[int, typer.Option(help="Pairs of a shard, about.")] = 1_024,
    activation: ActivationOption = None,
    provider: ProviderOption = "auto",
    precision: PrecisionOption = "auto",
    deployment: DeploymentOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Score a file of pairs of any size, resumably, here or on Ray; the same bytes either way."""
    on_ray = RaySettings(address=address, actors=actors, cpus_per_actor=cpus_per_actor, gpus_per_actor=gpus_per_actor)
    if on_ray != RaySettings() and not ray:
        raise InputError("these options are for actors on Ray", allowed="with --ray")
    settings = BulkSettings(
        provider=provider,
        precision=precision,
        deployment=read_deployment(deployment),
        activation=activation,
        shard_pairs=shard_pairs,
    )
    run_bulk(bundle, source, output, settings=settings, on_ray=on_ray if ray else None, as_json=as_json)


def run_bulk(
    bundle: str, source: Path, output: Path, *, settings: BulkSettings, on_ray: RaySettings | None, as_json: bool
) -> None:
    """Score a file and print what it came to: what ``bulk`` and ``score --output`` do."""
    from crossforge.runtime.distributed.bulk import LocalRunner, score_file
    from crossforge.runtime.distributed.ray_data import RayRunner

    with redirect_stdout(sys.stderr):  # where Ray prints what happens to its processes
        summary = score_file(
            bundle,
            source,
            output,
            settings=settings,
            runner=LocalRunner() if on_ray is None else RayRunner(on_ray),
            progress=TerminalProgress(),
            say=lambda line: err.print(f"  {line}"),
        )
    if as_json:
        print_json(summary)
        return
    if summary.truncated_pairs:
        err.print(
            f"[yellow]Warning:[/] {summary.truncated_pairs:,} of {summary.scored_pairs:,} pairs were too long for the model "
            "and were cut (the output says which)"
        )
    resumed = f", {summary.resumed_shards:,} of {summary.shards:,} shards from before" if summary.resumed_shards else ""
    ran = f"{summary.precision} on {summary.provider}"
    out.print(f"Wrote {escape(summary.output)}: {summary.pairs:,} pairs, {ran}{resumed}")
