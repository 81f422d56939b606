"""All commands: ``demo``, and every other one from the module that it lives in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from crossforge.export.bundle_cli import app as bundle_app
from crossforge.export.bundle_cli import variants_document
from crossforge.export.evaluation_cli import app as evaluation_app
from crossforge.export.hub.cli import app as hub_app
from crossforge.export.requirements import require_extras
from crossforge.export.tensorrt.cli import app as build_app
from crossforge.runtime.cli import app as scoring_app
from crossforge.runtime.cli_options import DebugOption, JsonOption
from crossforge.runtime.console import (
    TerminalProgress,
    handles_errors,
    out,
    print_json,
    print_ranking,
)
from crossforge.runtime.distributed.cli import app as bulk_app
from crossforge.runtime.inspection_cli import app as inspection_app
from crossforge.runtime.machine_cli import app as machine_app
from crossforge.runtime.pairs.cli import app as pairs_app
from crossforge.runtime.profiling.cli import app as profiling_app
from crossforge.runtime.profiling.tuning_cli import app as tuning_app
from crossforge.runtime.serving.cli import app as serving_app

app = typer.Typer(
    name="crossforge",
    help="Cross-encoder rerankers in production: exported, quantized, proven to rank the same, and served fast.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

DEFAULT_DEMO_BUNDLE = Path("demo-bundle")


@app.command()
@handles_errors
def demo(
    bundle: Annotated[Path, typer.Option(help="The folder to write; a bundle there is replaced.")] = DEFAULT_DEMO_BUNDLE,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Go the whole way on the embedded model: export, quantize, verify, rank, measure. Needs no model hub."""
    require_extras("demo", "export", "evaluate", "cpu", purpose="The demonstration")
    from crossforge.export.showcase import run_demo

    shown = run_demo(bundle, progress=TerminalProgress())
    if as_json:
        document = {
            name: {**entry, "pairs_per_s": shown.pairs_per_s[name]}
            for name, entry in variants_document(shown.manifest).items()
        }
        results = [{"corpus_id": row.corpus_id, "score": row.score, "text": row.text} for row in shown.results]
        print_json({"variants": document, "query": shown.record.query, "results": results, "precision": shown.precision})
        return
    out.print()
    out.print(f'[bold]"{shown.record.query}"[/] ranked by {shown.precision}:')
    print_ranking((row.score, shown.record.passages[row.corpus_id].id, row.text) for row in shown.results)
    out.print()
    summary = Table("variant", "MB", "pairs/s", "Kendall tau", "top-10 overlap", box=None, pad_edge=False)
    for name, entry in variants_document(shown.manifest).items():
        parity = shown.manifest.variants[name].parity
        summary.add_row(
            name,
            f"{int(str(entry['size_bytes'])) / 1e6:.1f}",
            f"{shown.pairs_per_s[name]:.0f}",
            f"{parity.kendall_tau:.4f} (against {parity.reference})",
            f"{parity.top10_overlap:.3f}",
        )
    out.print(summary)
    out.print()
    out.print(f"The bundle is in [bold]{escape(str(bundle))}[/]. Try:")
    out.print(
        f'  crossforge score {escape(str(bundle))} -q "capital of France" -p "Paris is the capital." -p "Lyon is a city."'
    )


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        import importlib.metadata

        typer.echo(f"crossforge {importlib.metadata.version('crossforge')}")
        raise typer.Exit


for group in (
    bundle_app,
    hub_app,
    build_app,
    evaluation_app,
    scoring_app,
    inspection_app,
    machine_app,
    pairs_app,
    profiling_app,
    tuning_app,
    bulk_app,
    serving_app,
):
    app.add_typer(group)
