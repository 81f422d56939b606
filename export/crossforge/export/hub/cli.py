"""The command ``push``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from crossforge.export.bundle_cli import parse_precisions
from crossforge.runtime.cli_options import (
    BundleArgument,
    DebugOption,
    JsonOption,
)
from crossforge.runtime.console import TerminalProgress, err, handles_errors, out, print_json

app = typer.Typer(add_completion=False)


@app.command()
@handles_errors
def push(
    bundle: BundleArgument,
    repo: Annotated[str, typer.Argument(help="OWNER/NAME on the model hub; made if there is none.")],
    variants: Annotated[
        str | None, typer.Option(help="Variants to publish, separated by commas.", show_default="all")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a private repository.")] = False,
    branch: Annotated[
        str | None,
        typer.Option("--revision", "--branch", help="The branch to push to; made if there is none.", show_default="main"),
    ] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    message: Annotated[str | None, typer.Option(help="Of the commit.", show_default="the variants")] = None,
    engines: Annotated[bool, typer.Option("--engines", help="TensorRT engines too; each is for one kind of GPU.")] = False,
    replace_card: Annotated[
        bool, typer.Option("--replace-card", help="Replace a README.md of the repository that somebody wrote or changed.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Verify, print the card and the files, push nothing.")] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Publish a bundle on the model hub, verified, with a model card."""
    from crossforge.export.hub.push import CardOrigin, PushOptions, push_bundle

    options = PushOptions(
        private=private,
        branch=branch,
        create_pr=create_pr,
        message=message,
        variants=None if variants is None else parse_precisions(variants),
        engines=engines,
        replace_card=replace_card,
        dry_run=dry_run,
    )
    pushed = push_bundle(bundle, repo, options, progress=TerminalProgress())
    if as_json:
        print_json({**vars(pushed), "size_bytes": pushed.size_bytes, "dry_run": dry_run})
        return
    origin = {
        CardOrigin.GENERATED: "generated",
        CardOrigin.BUNDLE: "the bundle's own README.md",
        CardOrigin.KEPT: "the repository's README.md stays: it was written or changed there (--replace-card replaces it)",
    }[pushed.card_origin]
    if dry_run:
        out.print(escape(pushed.card), soft_wrap=True)
    table = Table("file", "MB", box=None, pad_edge=False)
    for name, size in pushed.files.items():
        table.add_row(escape(name), f"{size / 1e6:.3f}")
    err.print(table)
    for item in pushed.left_out:
        err.print(f"[dim]not {escape(item.name)}: {escape(item.why)}[/]")
    for note in pushed.notes:
        err.print(f"[yellow]Note:[/] {escape(note)}")
    err.print(f"The card: {origin}")
    count = f"{len(pushed.files)} files, {pushed.size_bytes / 1e6:.1f} MB"
    if dry_run:
        err.print(f"{count} would go to {escape(repo)}; nothing was pushed.")
        return
    out.print(f"Pushed {count}: {escape(pushed.pull_request or pushed.url or repo)}", soft_wrap=True)
