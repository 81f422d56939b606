"""The command that judges rankings: ``evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from crossforge.export.bundle_cli import parse_precisions
from crossforge.profiles import InputError
from crossforge.runtime.cli_options import (
    RUN_FORMAT,
    BundleArgument,
    DebugOption,
    DeploymentOption,
    JsonOption,
    ProviderOption,
    read_deployment,
)
from crossforge.runtime.console import TerminalProgress, handles_errors, out, print_json, print_wide
from crossforge.runtime.pairs.cli import LabelColumnOption, LabelsOption, QuotingOption
from crossforge.runtime.pairs.options import Criterion, LabelKind, PairFormat

if TYPE_CHECKING:
    from crossforge.export.evaluation import Evaluation, RankingEvaluation
    from crossforge.export.pair_evaluation import PairEvaluation

app = typer.Typer(add_completion=False)


@app.command()
@handles_errors
def evaluate(
    bundle: BundleArgument,
    run: Annotated[Path | None, typer.Option(help=f"{RUN_FORMAT}.")] = None,
    qrels: Annotated[Path | None, typer.Option(help="Judgements in TREC format.")] = None,
    pairs: Annotated[Path | None, typer.Option(help="Instead of a run: labelled pairs, as pairs takes them.")] = None,
    labels: LabelsOption = None,
    label_column: LabelColumnOption = None,
    quoting: QuotingOption = None,
    precision: Annotated[
        str | None,
        typer.Option(help="Variants, separated by commas.", show_default="all, or the deployment profile's and fp32"),
    ] = None,
    embedder: Annotated[
        list[Path] | None,
        typer.Option(help="Bundle of a bi-encoder to order the same candidates; may be repeated."),
    ] = None,
    min_relevance: Annotated[int, typer.Option(help="Lowest grade that MRR and recall count as relevant.")] = 1,
    provider: ProviderOption = "auto",
    deployment: DeploymentOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Measure a bundle's variants side by side: nDCG@10 beside the first stage's, or how they judge labelled pairs."""
    from crossforge.export.evaluation import evaluate_bundle
    from crossforge.export.pair_evaluation import evaluate_pairs

    of_runs = {"--embedder": bool(embedder), "--min-relevance": min_relevance != 1}
    of_pairs_only = {"--labels": labels, "--label-column": label_column, "--quoting": quoting}
    for option, given in (of_runs if pairs is not None else of_pairs_only).items():
        if given:
            raise InputError(f"{option} says nothing of {'pairs' if pairs is not None else 'a run'}", fix="Leave it out.")
    if pairs is not None and run is None and qrels is None:
        of_pairs = evaluate_pairs(
            bundle,
            pairs,
            precisions=None if precision is None else parse_precisions(precision),
            kind=labels,
            pair_format=PairFormat(label_column=label_column, quoting=quoting),
            provider=provider,
            deployment=read_deployment(deployment),
            progress=TerminalProgress(),
        )
        if as_json:
            print_json(of_pairs)
        else:
            _print_pair_evaluation(of_pairs)
        return
    if run is None or qrels is None or pairs is not None:
        raise InputError("what to evaluate on is not clear", allowed="either --run with --qrels, or --pairs")
    evaluation = evaluate_bundle(
        bundle,
        run,
        qrels,
        precisions=None if precision is None else parse_precisions(precision),
        embedders=embedder or (),
        min_relevance=min_relevance,
        provider=provider,
        deployment=read_deployment(deployment),
        progress=TerminalProgress(),
    )
    if as_json:
        print_json(_evaluation_document(evaluation))
        return
    table = _table("nDCG@10", "MRR@10", "recall@100", "change (95 % interval)", "p", "Kendall tau", "pairs/s")
    table.add_row("first stage", *_row(evaluation.first_stage), "")
    for path, ranking in evaluation.embedders.items():
        table.add_row(f"{Path(path).name} {ranking.precision}", *_row(ranking), f"{ranking.pairs_per_s:.0f}")
    for name, variant in evaluation.variants.items():
        table.add_row(name, *_row(variant), f"{variant.pairs_per_s:.0f}")
    print_wide(table)
    out.print(
        f"{evaluation.queries} queries, {evaluation.pairs} pairs; change of nDCG@10 and Kendall tau against "
        f"{evaluation.reference}; p by paired randomization."
    )
    if evaluation.unjudged_queries:
        out.print(f"{evaluation.unjudged_queries} queries of the run have no judgement and were left out.")


def _table(*names: str) -> Table:
    """A table whose cells stay in one line: figures that are cut cannot be compared."""
    table = Table("", box=None)
    for name in names:
        table.add_column(name, no_wrap=True)
    return table


def _row(ranking: RankingEvaluation) -> tuple[str, ...]:
    quality, change, p_value = ranking.quality, "", ""
    if (difference := ranking.difference) is not None:
        low, high = difference.interval_95
        change, p_value = f"{difference.mean:+.4f} ({low:+.4f} to {high:+.4f})", f"{difference.p_value:.3f}"
    tau = "-" if ranking.kendall_tau is None else f"{ranking.kendall_tau:.4f}"
    figures = (quality.ndcg_at_10, quality.mrr_at_10, quality.recall_at_100)
    return (*(f"{figure:.4f}" for figure in figures), change, p_value, tau)


def _print_pair_evaluation(evaluation: PairEvaluation) -> None:
    is_binary = evaluation.kind is LabelKind.BINARY
    names = ("AP", "F1", "accuracy", "best F1") if is_binary else ("Spearman", "Pearson")
    table = _table(*names, "change (95 % interval)", "largest diff.", "pairs/s")
    for name, variant in evaluation.variants.items():
        figures: tuple[float | None, ...] = ()
        if variant.binary is not None and variant.as_deployed is not None:
            best = variant.binary.best[Criterion.F1]
            figures = (variant.binary.average_precision, variant.as_deployed.f1, variant.as_deployed.accuracy, best.f1)
        elif variant.graded is not None:
            figures = (variant.graded.spearman, variant.graded.pearson)
        change = ""
        if (difference := variant.difference) is not None:
            low, high = difference.interval_95
            change = f"{difference.mean:+.4f} ({low:+.4f} to {high:+.4f})"
        shown = ("-" if figure is None else f"{figure:.4f}" for figure in figures)
        table.add_row(name, *shown, change, f"{variant.largest_difference:.4f}", f"{variant.pairs_per_s:.0f}")
    print_wide(table)
    out.print(f"{evaluation.pairs} pairs; labels: {evaluation.labels}; change of {names[0]} against {evaluation.reference}.")
    if (deployed := evaluation.variants[evaluation.reference].as_deployed) is not None:
        out.print(
            f"AP is the average precision; F1 and accuracy are at {deployed.threshold}, where the F1 of "
            f"{evaluation.reference} is best on these pairs; best F1 is at each variant's own best threshold."
        )


def _evaluation_document(evaluation: Evaluation) -> dict[str, object]:
    """What ``--json`` says of an evaluation."""

    def figures(ranking: RankingEvaluation) -> dict[str, object]:
        return {
            "ndcg@10": ranking.quality.ndcg_at_10,
            "mrr@10": ranking.quality.mrr_at_10,
            "recall@100": ranking.quality.recall_at_100,
            "ndcg@10_difference": ranking.difference,
            "kendall_tau": ranking.kendall_tau,
        }

    return {
        "queries": evaluation.queries,
        "unjudged_queries": evaluation.unjudged_queries,
        "pairs": evaluation.pairs,
        "first_stage": figures(evaluation.first_stage),
        "embedders": {
            path: {"precision": ranking.precision, **figures(ranking), "pairs_per_s": ranking.pairs_per_s}
            for path, ranking in evaluation.embedders.items()
        },
        "reference": evaluation.reference,
        "variants": {
            name: {**figures(variant), "pairs_per_s": variant.pairs_per_s} for name, variant in evaluation.variants.items()
        },
    }
