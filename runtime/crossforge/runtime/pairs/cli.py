"""The command that scores pairs of texts of equal standing: ``pairs``."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from crossforge.profiles import Activation
from crossforge.runtime.cli import say_what_runs
from crossforge.runtime.cli_options import (
    BundleArgument,
    DebugOption,
    DeploymentOption,
    JsonOption,
    PrecisionOption,
    ProviderOption,
    StrictOption,
    read_deployment,
)
from crossforge.runtime.console import err, handles_errors, out, print_json
from crossforge.runtime.pairs.options import Criterion, JudgingOptions, LabelKind, PairFormat, Quoting

if TYPE_CHECKING:
    from crossforge.runtime.pairs.figures import AtThreshold
    from crossforge.runtime.pairs.judging import Summary
    from crossforge.runtime.pairs.streaming import ScoredPair

app = typer.Typer(add_completion=False)

LabelsOption = Annotated[
    LabelKind | None, typer.Option(help="What labels are.", show_default="binary if all are 0 or 1, else graded")
]
LabelColumnOption = Annotated[
    str | None, typer.Option(help="The column of the labels.", show_default="label, score or is_duplicate")
]
QuotingOption = Annotated[
    Quoting | None,
    typer.Option(
        help="Whether quotes around a table's field are the format's (minimal) or the text's (none).",
        show_default="minimal for .csv, none for .tsv",
    ),
]


class PairsFormat(StrEnum):
    """How scored pairs are printed."""

    TABLE = "table"
    JSONL = "jsonl"


@app.command()
@handles_errors
def pairs(
    bundle: BundleArgument,
    file: Annotated[
        Path,
        typer.Argument(
            help='JSON lines of {"text1", "text2", "label"}, or a .csv or .tsv with a header; - is standard input.',
        ),
    ],
    threshold: Annotated[
        float | None, typer.Option(help="Mark pairs that score as much as duplicates.", show_default="no marks")
    ] = None,
    threshold_from: Annotated[Path | None, typer.Option(help="Choose the threshold on these labelled pairs.")] = None,
    held_out: Annotated[
        float | None,
        typer.Option(help="Measure on this share of the labelled pairs, and choose the threshold on the rest."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides which pairs are held out.")] = 0,
    criterion: Annotated[Criterion, typer.Option(help="What a threshold is chosen for.")] = Criterion.F1,
    labels: LabelsOption = None,
    label_column: LabelColumnOption = None,
    quoting: QuotingOption = None,
    activation: Annotated[
        Activation | None, typer.Option(help="What makes a score of a logit.", show_default="the bundle's")
    ] = None,
    output: Annotated[PairsFormat, typer.Option("--format", help="How to print.")] = PairsFormat.TABLE,
    provider: ProviderOption = "auto",
    precision: PrecisionOption = "auto",
    strict: StrictOption = False,
    deployment: DeploymentOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Score pairs of texts, mark duplicates, and judge scores and marks by the file's labels."""
    from crossforge.runtime.pairs.judging import PairJudge
    from crossforge.runtime.pairs.records import open_pairs
    from crossforge.runtime.pairs.streaming import similarity_activation
    from crossforge.runtime.reranker import Reranker

    options = JudgingOptions(
        threshold=threshold,
        threshold_from=threshold_from,
        held_out=held_out,
        seed=seed,
        criterion=criterion,
        labels=labels,
        activation=activation,
        format=PairFormat(label_column=label_column, quoting=quoting),
    )
    with open_pairs(file, options.format) as opened:
        judge = PairJudge(opened, options)
        with Reranker.load(
            bundle, provider=provider, precision=precision, strict=strict, deployment=read_deployment(deployment)
        ) as reranker:
            say_what_runs(reranker)
            scores, marks = [], []
            for row, marked in judge.run(reranker):
                if as_json:
                    scores.append(row.score)
                    marks.append(marked)
                elif output is PairsFormat.JSONL:
                    typer.echo(json.dumps(_row_document(row, marked), ensure_ascii=False))
                else:
                    out.print(escape(_table_line(row, marked, out.width)), no_wrap=True)
            summary = judge.summarize()
            used = {
                "provider": reranker.session.provider,
                "precision": reranker.precision,
                "activation": similarity_activation(reranker, activation),
            }
            is_symmetric = reranker.manifest.truncation.is_symmetric
    _say_what_was_lost(summary, is_symmetric=is_symmetric)
    if as_json:
        print_json({"scores": scores, "duplicate": marks, **vars(summary), **used})
        return
    console = err if output is PairsFormat.JSONL else out
    for line in describe(summary):
        console.print(escape(line))


def describe(summary: Summary) -> list[str]:
    """A summary in lines."""
    lines = [f"{summary.pairs} pairs; labels: {summary.labels}"]
    if summary.threshold is not None:
        lines.append(f"{summary.marked} score {summary.threshold} or more ({summary.threshold_source})")
    if summary.graded is not None:
        figures = summary.graded
        lines.append(f"Spearman {_figure(figures.spearman)}, Pearson {_figure(figures.pearson)} on {figures.pairs} pairs")
    if (binary := summary.binary) is not None:
        lines.append(
            f"average precision {binary.average_precision:.4f}; {binary.duplicates} of {binary.pairs} are duplicates"
        )
        if binary.at_threshold is not None:
            lines.append(f"at {_at(binary.at_threshold)}")
        lines += [f"best {criterion.word} on these pairs: at {_at(best)}" for criterion, best in binary.best.items()]
        lines.append(
            "A threshold that is best on the pairs it is measured on looks better than it is: choose it on others, "
            "with --threshold-from FILE or --held-out 0.5."
        )
    return lines


def _at(figures: AtThreshold) -> str:
    return (
        f"{figures.threshold}: precision {figures.precision:.4f}, recall {figures.recall:.4f}, F1 {figures.f1:.4f}, "
        f"accuracy {figures.accuracy:.4f}"
    )


def _figure(value: float | None) -> str:
    return "- (all scores are equal)" if value is None else f"{value:.4f}"


def _row_document(row: ScoredPair, marked: bool | None) -> dict[str, object]:
    return {
        "line": row.pair.line,
        "score": row.score,
        "duplicate": marked,
        "label": row.pair.label,
        "truncated": row.truncated,
        "text1": row.pair.text1,
        "text2": row.pair.text2,
    }


def _table_line(row: ScoredPair, marked: bool | None, width: int) -> str:
    label = "" if row.pair.label is None else f"{row.pair.label:g}"
    start = f"{row.score:9.4f} {'=' if marked else ' '} {label:>4}  "
    most = max(10, (width - len(start) - 3) // 2)
    texts = (" ".join(text.split()) for text in (row.pair.text1, row.pair.text2))
    first, second = (text if len(text) <= most else f"{text[: most - 1]}…" for text in texts)
    return f"{start}{first:<{most}} | {second}"


def _say_what_was_lost(summary: Summary, *, is_symmetric: bool) -> None:
    if summary.truncated:
        first = f", {summary.text1_truncated} of them in the first text" if summary.text1_truncated else ""
        hint = ". The bundle takes the first text for a query, which keeps few tokens; export --symmetric takes none for one"
        if is_symmetric or not summary.text1_truncated:
            hint = ""
        err.print(
            f"[yellow]Warning:[/] {summary.truncated} of {summary.pairs} pairs were too long for the model and were "
            f"cut{first}{escape(hint)}"
        )
    if summary.mostly_unknown:
        err.print(
            f"[yellow]Warning:[/] {summary.mostly_unknown} of {summary.pairs} pairs are mostly text that the model has no "
            "token for"
        )
