"""Commands that look at a bundle: ``inspect``, ``verify``."""

from __future__ import annotations

from collections.abc import Sequence

import typer
from rich.markup import escape
from rich.table import Table

from crossforge.profiles import Embedding, EngineRecord, Manifest, Prompt
from crossforge.runtime.cli_options import BundleArgument, DebugOption, DeploymentOption, JsonOption, read_deployment
from crossforge.runtime.console import TerminalProgress, handles_errors, one_line, out, print_json

app = typer.Typer(add_completion=False)


@app.command()
@handles_errors
def inspect(bundle: BundleArgument, as_json: JsonOption = False, debug: DebugOption = False) -> None:  # noqa: ARG001
    """Show what a bundle is."""
    from crossforge.runtime.bundle import Bundle
    from crossforge.runtime.engines import read_engines

    opened = Bundle.open(bundle)
    manifest = opened.manifest
    engines = read_engines(opened)
    if as_json:
        print_json({**vars(manifest), "engines": engines})
        return
    facts = {
        "source": manifest.source.id + (f" at {manifest.source.revision}" if manifest.source.revision else ""),
        "architecture": manifest.architecture,
        "inputs": ", ".join(manifest.input_names),
        **(_describe_pairs(manifest) if manifest.embedding is None else _describe_texts(manifest, manifest.embedding)),
        "golden pairs": str(len(manifest.golden)),
        **({"vocabulary": str(manifest.trimmed)} if manifest.trimmed else {}),
        "made with": ", ".join(f"{name} {version}" for name, version in manifest.tools.items()),
    }
    for name, value in facts.items():
        out.print(f"[bold]{name:<13}[/] {escape(value)}")
    table = Table("variant", "MB", "against", "largest diff.", "Kendall tau", "top-10 overlap", "gate", box=None)
    for precision, variant in manifest.variants.items():
        parity = variant.parity
        table.add_row(
            precision,
            f"{opened.size_bytes(precision) / 1e6:.1f}",
            parity.reference,
            f"{parity.max_abs_diff:.2g}",
            "-" if parity.kendall_tau is None else f"{parity.kendall_tau:.4f}",
            "-" if parity.top10_overlap is None else f"{parity.top10_overlap:.3f}",
            "passed" if parity.passed else "[red]failed[/]",
        )
    out.print()
    out.print(table)
    if engines:
        out.print()
        out.print(_engine_table(engines, manifest))


@app.command()
@handles_errors
def verify(
    bundle: BundleArgument,
    deployment: DeploymentOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Check that a bundle still is what it was: every file's digest, every variant's golden scores."""
    from crossforge.runtime.verification import verify_bundle

    verification = verify_bundle(bundle, deployment=read_deployment(deployment), progress=TerminalProgress())
    if as_json:
        print_json(
            {
                "passed": verification.passed,
                "damaged_files": verification.damaged_files,
                "template_problem": verification.template_problem,
                "variants": {v.precision: v for v in verification.variants},
                "deployed": verification.deployed,
            }
        )
    else:
        for problem in dict.fromkeys(verification.problems):  # variants may share one
            out.print(f"[red]✗[/] {escape(problem)}")
        out.print("The bundle is what it was." if verification.passed else "[bold red]The bundle is not what it was.[/]")
    if not verification.passed:
        raise typer.Exit(1)


def _describe_pairs(manifest: Manifest) -> dict[str, str]:
    scoring, truncation = manifest.scoring, manifest.truncation
    return {
        "pair": truncation.describe(),
        **({"prompt": _describe_prompt(manifest.prompt)} if manifest.prompt else {}),
        "labels": f"{', '.join(scoring.labels)}; ranks by "
        + ("none" if scoring.ranking_label is None else scoring.labels[scoring.ranking_label]),
        "activation": scoring.activation,
    }


def _describe_prompt(prompt: Prompt) -> str:
    text = one_line(prompt.body)
    return text if prompt.instruction is None else f"{text}; instruction: {one_line(prompt.instruction)}"


def _describe_texts(manifest: Manifest, embedding: Embedding) -> dict[str, str]:
    steps = [
        f"{' and '.join(embedding.pooling)} pooling",
        *embedding.dense,
        *(["normalized"] if embedding.normalize else []),
    ]
    prompts = [
        f"{name} {text!r}" + (" (default)" if name == embedding.default_prompt else "")
        for name, text in embedding.prompts.items()
    ]
    return {
        "text": f"up to {manifest.truncation.max_length} tokens; the {manifest.truncation.side} gives way",
        "embedding": f"{embedding.dimension} dimensions; {', '.join(steps)}; compared by {embedding.similarity}",
        "prompts": ", ".join(prompts) or "none",
    }


def _engine_table(engines: Sequence[EngineRecord], manifest: Manifest) -> Table:
    table = Table("engine", "target", "variant", "MB", "built by", "batch x tokens", "state", box=None)
    for engine in engines:
        spec = engine.spec
        table.add_row(
            engine.key[:12],
            spec.target,
            spec.precision,
            f"{engine.engine.size_bytes / 1e6:.1f}",
            f"{spec.backend} {spec.compiler_version}",
            "\n".join(str(profile) for profile in spec.profiles),
            "current" if engine.is_of(manifest) else "[yellow]of an older variant[/]",
        )
    return table
