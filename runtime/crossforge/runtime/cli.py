"""Commands that run a bundle: ``score``, ``rank``, ``inspect``, ``verify``, ``doctor``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from crossforge.profiles import Activation, DeploymentProfile, Embedding, EngineRecord, InputError, Manifest, Prompt
from crossforge.runtime.console import (
    DebugOption,
    JsonOption,
    TerminalProgress,
    err,
    handles_errors,
    out,
    print_json,
    print_ranking,
)
from crossforge.runtime.windows import DEFAULT_OVERLAP, Chunking, Pooling, Window

if TYPE_CHECKING:
    from crossforge.runtime.reranker import Reranker

app = typer.Typer(add_completion=False)

BundleArgument = Annotated[
    str, typer.Argument(help="The bundle's folder, or OWNER/NAME[@REVISION] on the model hub.", show_default=False)
]
ProviderOption = Annotated[str, typer.Option(help="auto, tensorrt, cuda, native, cpu or openvino.")]
PrecisionOption = Annotated[str, typer.Option(help="auto, or a variant of the bundle.")]
StrictOption = Annotated[bool, typer.Option("--strict", help="Fail instead of running on another provider.")]
DeploymentOption = Annotated[
    Path | None, typer.Option(help="A deployment profile (TOML), as tune writes it.", show_default=False)
]
InstructionOption = Annotated[
    str | None, typer.Option(help="What a causal reranker is told to look for.", show_default="the bundle's")
]
QueryOption = Annotated[str | None, typer.Option("--query", "-q", help="The query.", show_default=False)]
ChunkOption = Annotated[
    Pooling | None,
    typer.Option(
        help="Split passages that are too long; the best window's score is the passage's.", show_default="cut them"
    ),
]
OverlapOption = Annotated[
    float | None,
    typer.Option(help="Share of a window that the next one repeats, with --chunk.", show_default=str(DEFAULT_OVERLAP)),
]

WindowOption = Annotated[
    int | None, typer.Option(help="Longest window in tokens, with --chunk.", show_default="what the model reads")
]


class RankFormat(StrEnum):
    """How a ranking is printed."""

    TABLE = "table"
    JSONL = "jsonl"
    TREC = "trec"


@app.command()
@handles_errors
def score(
    bundle: BundleArgument,
    query: QueryOption = None,
    passage: Annotated[
        list[str] | None, typer.Option("--passage", "-p", help="A passage; may be repeated.", show_default=False)
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option(help='JSON lines of {"query", "passage"}; - is standard input.', show_default=False)
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Write the scores of --pairs to this file, as bulk does.", show_default=False)
    ] = None,
    ray: Annotated[bool, typer.Option("--ray", help="With --output: score with actors on Ray, as bulk --ray does.")] = False,
    activation: Annotated[
        Activation | None, typer.Option(help="Apply this to the logits.", show_default="none: raw relevance")
    ] = None,
    chunk: ChunkOption = None,
    overlap: OverlapOption = None,
    window: WindowOption = None,
    provider: ProviderOption = "auto",
    precision: PrecisionOption = "auto",
    strict: StrictOption = False,
    deployment: DeploymentOption = None,
    instruction: InstructionOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Score pairs: raw relevance, in the order given."""
    if ray or output is not None:
        if pairs is None or output is None or query is not None or passage:
            raise InputError("bulk scoring reads a file and writes one", allowed="--pairs FILE --output FILE [--ray]")
        if chunk is not None:
            raise InputError("bulk scoring splits no passages", got=f"--chunk {chunk}", allowed="--pairs without --output")
        if instruction is not None:
            raise InputError(
                "bulk scoring gives no instruction", got=f"--instruction {instruction!r}", allowed="--pairs without --output"
            )
        from crossforge.runtime.distributed.cli import run_bulk
        from crossforge.runtime.distributed.settings import BulkSettings, RaySettings

        settings = BulkSettings(
            provider=provider, precision=precision, deployment=read_deployment(deployment), activation=activation
        )
        run_bulk(bundle, pairs, output, settings=settings, on_ray=RaySettings() if ray else None, as_json=as_json)
        return
    from crossforge.runtime.records import read_pairs
    from crossforge.runtime.reranker import Reranker

    if (pairs is None) == (query is None):
        raise InputError("nothing to score", allowed="either --query with --passage, or --pairs FILE")
    if pairs is not None and passage:
        raise InputError("--passage needs --query", got="--pairs", allowed="one of the two ways")
    texts = read_pairs(pairs) if pairs is not None else [(query or "", text) for text in passage or ()]
    with Reranker.load(
        bundle,
        provider=provider,
        precision=precision,
        strict=strict,
        deployment=read_deployment(deployment),
        instruction=instruction,
    ) as reranker:
        say_what_runs(reranker)
        scored = reranker.score_pairs(texts, chunk=_chunking(chunk, overlap, window))
        scores = reranker.relevance(scored.logits, activation=activation)
        used = {"provider": reranker.session.provider, "precision": reranker.precision}
    if as_json:
        cut = {"truncated": scored.truncated.tolist(), "query_truncated": scored.query_truncated.tolist()}
        unknown = {
            "unknown_tokens": scored.unknown_tokens.tolist(),
            "mostly_unknown": scored.mostly_unknown.tolist(),
        }
        windows = {} if scored.windows is None else {"windows": scored.windows}
        print_json({"scores": scores.tolist(), **cut, **unknown, **windows, **used})
        return
    _say_what_was_cut(int(scored.truncated.sum()), len(texts))
    _say_what_is_unknown(int((scored.unknown_tokens > 0).sum()), len(texts))
    for value, (_, text) in zip(scores.tolist(), texts, strict=True):
        out.print(f"{value:.6f}\t{escape(_one_line(text))}")


@app.command()
@handles_errors
def rank(
    bundle: BundleArgument,
    query: Annotated[str, typer.Option("--query", "-q", help="The query.", show_default=False)],
    passages: Annotated[
        Path,
        typer.Option(
            help='A passage a line, or .jsonl with {"id", "text"} a line; - is standard input.', show_default=False
        ),
    ],
    top_k: Annotated[int | None, typer.Option(help="Only the best.", show_default="all")] = None,
    output: Annotated[RankFormat, typer.Option("--format", help="How to print.")] = RankFormat.TABLE,
    qid: Annotated[str, typer.Option(help="The query's id in TREC output.")] = "q1",
    chunk: ChunkOption = None,
    overlap: OverlapOption = None,
    window: WindowOption = None,
    provider: ProviderOption = "auto",
    precision: PrecisionOption = "auto",
    strict: StrictOption = False,
    deployment: DeploymentOption = None,
    instruction: InstructionOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Rank passages against a query, best first."""
    from crossforge.runtime.records import read_passages
    from crossforge.runtime.reranker import Reranker

    items = read_passages(passages)
    with Reranker.load(
        bundle,
        provider=provider,
        precision=precision,
        strict=strict,
        deployment=read_deployment(deployment),
        instruction=instruction,
    ) as reranker:
        say_what_runs(reranker)
        ranked = reranker.rank(query, [item.text for item in items], top_k=top_k, chunk=_chunking(chunk, overlap, window))
        used = {"provider": reranker.session.provider, "precision": reranker.precision}
    rows = [
        {
            "corpus_id": row.corpus_id,
            "id": items[row.corpus_id].id,
            "score": row.score,
            "text": row.text,
            "truncated": row.truncated,
            **({} if chunk is None else {"window": None if row.window is None else vars(row.window)}),
        }
        for row in ranked
    ]
    if as_json:
        print_json({"query": query, "results": rows, **used})
        return
    _say_what_was_cut(sum(row.truncated for row in ranked), len(ranked))
    if output is RankFormat.TABLE:
        print_ranking((row.score, items[row.corpus_id].id, _best_part(row.text, row.window)) for row in ranked)
        return
    for position, row in enumerate(rows, start=1):
        line = (
            json.dumps(row, ensure_ascii=False)
            if output is RankFormat.JSONL
            else f"{qid} Q0 {row['id']} {position} {row['score']:.6f} crossforge"
        )
        typer.echo(line)


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
        for problem in verification.problems:
            out.print(f"[red]✗[/] {escape(problem)}")
        out.print("The bundle is what it was." if verification.passed else "[bold red]The bundle is not what it was.[/]")
    if not verification.passed:
        raise typer.Exit(1)


@app.command()
@handles_errors
def native(
    compiler: Annotated[str, typer.Option(help="A C++17 compiler that takes GCC's options.")] = "g++",
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Compile the native engine for int8 on this machine's processor, into the user's cache folder."""
    from crossforge.runtime.sessions.native.library import build_library, kernels_here, load_library

    with TerminalProgress().stage("compile the native engine") as stage:
        library = build_library(compiler=compiler)
        stage.note = f"{library.stat().st_size / 1e3:.0f} kB"
    out.print(f"Wrote {escape(str(library))}", soft_wrap=True)
    out.print(f"Kernels that this processor runs, the fastest first: {', '.join(kernels_here(load_library(library)))}")


@app.command()
@handles_errors
def doctor(
    bundle: Annotated[
        str | None, typer.Argument(help="Also say what would run this bundle here, and why.", show_default=False)
    ] = None,
    deployment: DeploymentOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Show what this machine can run, and why not the rest."""
    from crossforge.runtime.bundle import Bundle
    from crossforge.runtime.decision import decide
    from crossforge.runtime.doctor import diagnose
    from crossforge.runtime.machine import inspect_machine
    from crossforge.runtime.precision import AUTO

    if deployment is not None and bundle is None:
        raise InputError(
            "--deployment says how a bundle is run, and there is none", allowed="doctor BUNDLE --deployment FILE"
        )
    machine = inspect_machine()
    diagnosis = diagnose(machine)
    profile = read_deployment(deployment) or DeploymentProfile()
    decision = None
    if bundle is not None:
        opened, precision = Bundle.open(bundle), profile.precision or AUTO
        decision = decide(opened, machine, precision=precision, order=profile.providers, gpu=profile.gpu).explain()
    if as_json:
        print_json({**vars(diagnosis), "decision": decision})
    else:
        cores = f"{machine.usable_cores} usable of {machine.total_cores} cores"
        out.print(f"[bold]processor[/]  {escape(machine.cpu)}, {cores}")
        out.print(f"[bold]vectors[/]    {', '.join(machine.instruction_sets) or 'unknown'}")
        out.print(f"[bold]GPUs[/]       {escape(', '.join(machine.gpus) or machine.gpu_reason)}")
        out.print(f"[bold]packages[/]   {', '.join(diagnosis.packages)}")
        for extra, command in diagnosis.missing_extras.items():
            out.print(f"[bold]not here[/]   extra {extra}: {escape(command)}")
        out.print()
        for state in diagnosis.providers:
            mark = "[green]✓[/]" if state.available else "[red]✗[/]"
            out.print(f"{mark} {state.name:<9} {escape(state.reason)}")
        out.print()
        if decision is not None:
            out.print(f"[bold]{escape(str(bundle))}[/] would run as {escape(decision)}")
            out.print()
        for problem in diagnosis.problems:
            out.print(f"[yellow]![/] {escape(problem)}")
        if not diagnosis.problems:
            out.print("No problems.")
    if not any(state.available for state in diagnosis.providers):
        raise typer.Exit(3)


def read_deployment(path: Path | None) -> DeploymentProfile | None:
    """The deployment profile that a command was given, if it was given one."""
    return None if path is None else DeploymentProfile.from_toml(path)


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
    text = _one_line(prompt.body)
    return text if prompt.instruction is None else f"{text}; instruction: {_one_line(prompt.instruction)}"


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


def _chunking(pooling: Pooling | None, overlap: float | None, window: int | None) -> Chunking | None:
    if pooling is not None:
        return Chunking(pooling=pooling, overlap=DEFAULT_OVERLAP if overlap is None else overlap, window_tokens=window)
    for name, value in {"--overlap": overlap, "--window": window}.items():
        if value is not None:
            raise InputError(f"{name} says how passages are split, and they are not", allowed=f"--chunk max {name} {value}")
    return None


def _best_part(text: str, window: Window | None) -> str:
    """What of a passage has its score."""
    return text if window is None else f"[{window.index + 1} of {window.count}] {text[window.start : window.end]}"


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


def say_what_runs(reranker: Reranker) -> None:
    """Tell on stderr which variant runs where, and why."""
    if reranker.provider_plan and reranker.precision_choice:
        why = "; ".join(reranker.precision_choice.reasons)
        variant = f"{reranker.precision}" + (f" ({why})" if why else "")
        err.print(f"[dim]{escape(f'{variant} on {reranker.provider_plan.explain()}')}[/]")


def _say_what_was_cut(count: int, total: int) -> None:
    if count:
        err.print(
            f"[yellow]Warning:[/] {count} of {total} pairs were too long for the model and were cut (--json says which)"
        )


def _say_what_is_unknown(count: int, total: int) -> None:
    if count:
        err.print(
            f"[yellow]Warning:[/] {count} of {total} pairs hold text that the model has no token for (--json says how much)"
        )


def _one_line(text: str) -> str:
    return " ".join(text.split())
