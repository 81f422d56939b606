"""Commands that run a bundle: ``score``, ``rank``."""

from __future__ import annotations

import json
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    StrictOption,
    read_deployment,
)
from crossforge.runtime.console import err, handles_errors, one_line, out, print_json, print_ranking
from crossforge.runtime.windows import DEFAULT_OVERLAP, Chunking, Pooling, Window

if TYPE_CHECKING:
    from crossforge.runtime.reranker import Reranker

app = typer.Typer(add_completion=False)

InstructionOption = Annotated[
    str | None, typer.Option(help="What a causal reranker is told to look for.", show_default="the bundle's")
]
_QUERY = typer.Option("--query", "-q", help="The query.")
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
    query: Annotated[str | None, _QUERY] = None,
    passage: Annotated[list[str] | None, typer.Option("--passage", "-p", help="A passage; may be repeated.")] = None,
    pairs: Annotated[Path | None, typer.Option(help='JSON lines of {"query", "passage"}; - is standard input.')] = None,
    output: Annotated[Path | None, typer.Option(help="Write the scores of --pairs to this file, as bulk does.")] = None,
    ray: Annotated[bool, typer.Option("--ray", help="With --output: score with actors on Ray, as bulk --ray does.")] = False,
    activation: ActivationOption = None,
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
        what = "there is nothing to score" if pairs is None else "what to score is not clear"
        raise InputError(what, allowed="either --query with --passage, or --pairs FILE")
    if pairs is not None and passage:
        raise InputError("--passage needs --query", got="--pairs", allowed="one of the two ways")
    chunking = _chunking(chunk, overlap, window)
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
        scored = reranker.score_pairs(texts, chunk=chunking)
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
        out.print(f"{value:.6f}\t{escape(one_line(text))}")


@app.command()
@handles_errors
def rank(
    bundle: BundleArgument,
    query: Annotated[str, _QUERY],
    passages: Annotated[
        Path,
        typer.Option(help='A passage a line, or .jsonl with {"id", "text"} a line; - is standard input.'),
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

    chunking = _chunking(chunk, overlap, window)
    items = read_passages(passages)
    if output is RankFormat.TREC and not as_json:
        _refuse_blanks([("--qid", qid), *((f"an id of {passages}", item.id) for item in items)])
    with Reranker.load(
        bundle,
        provider=provider,
        precision=precision,
        strict=strict,
        deployment=read_deployment(deployment),
        instruction=instruction,
    ) as reranker:
        say_what_runs(reranker)
        ranked = reranker.rank(query, [item.text for item in items], top_k=top_k, chunk=chunking)
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


def _chunking(pooling: Pooling | None, overlap: float | None, window: int | None) -> Chunking | None:
    if pooling is not None:
        return Chunking(pooling=pooling, overlap=DEFAULT_OVERLAP if overlap is None else overlap, window_tokens=window)
    for name, value in {"--overlap": overlap, "--window": window}.items():
        if value is not None:
            raise InputError(f"{name} says how passages are split, and they are not", allowed=f"--chunk max {name} {value}")
    return None


def _refuse_blanks(ids: Iterable[tuple[str, str]]) -> None:
    """A space would end a column of the TREC format."""
    for what, value in ids:
        if value.split() != [value]:
            raise InputError(f"{what} cannot stand in TREC output", got=repr(value), allowed="a text without spaces")


def _best_part(text: str, window: Window | None) -> str:
    """What of a passage has its score."""
    return text if window is None else f"[{window.index + 1} of {window.count}] {text[window.start : window.end]}"


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
