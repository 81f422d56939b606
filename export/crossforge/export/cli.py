"""Commands that make and judge a bundle (``export``, ``evaluate``, ``demo`` ...), and the entry point of them all."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from crossforge.export.gates import parse_gates
from crossforge.export.options import Int8Recipe, RangeMethod
from crossforge.export.requirements import require_extras
from crossforge.export.tensorrt.cli import app as build_app
from crossforge.profiles import Activation, InputError, Manifest, Precision
from crossforge.runtime.cli import BundleArgument, PrecisionOption, ProviderOption
from crossforge.runtime.cli import app as runtime_app
from crossforge.runtime.console import (
    DebugOption,
    JsonOption,
    TerminalProgress,
    handles_errors,
    out,
    print_json,
    print_ranking,
)

if TYPE_CHECKING:
    from crossforge.export.evaluation import Evaluation
    from crossforge.export.quality import Quality

app = typer.Typer(
    name="crossforge",
    help="Cross-encoder rerankers in production: exported, quantized, proven to rank the same, and served fast.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

DEFAULT_DEMO_BUNDLE = Path("demo-bundle")

CalibrationOption = Annotated[
    Path | None, typer.Option(help="Pairs in the run format to tune quantization on.", show_default="built-in pairs")
]
VerificationOption = Annotated[
    Path | None,
    typer.Option(help="Pairs in the run format to judge variants on; not the calibration's.", show_default="built-in pairs"),
]
QrelsOption = Annotated[
    Path | None, typer.Option(help="Judgements of those pairs in TREC format: the gate looks at nDCG and MRR too.")
]
GateOption = Annotated[
    list[str] | None,
    typer.Option(
        help="A threshold, [PRECISION:]NAME=NUMBER, such as int8:min_kendall_tau=0.97; repeat for more.", show_default=False
    ),
]
NoGateOption = Annotated[bool, typer.Option("--no-gate", help="Write variants that rank differently too, marked as failed.")]
NoRepairOption = Annotated[
    bool, typer.Option("--no-repair", help="Refuse int8 that fails its gate, instead of leaving layers in float32.")
]
RecipeOption = Annotated[
    Int8Recipe, typer.Option("--int8", help="Scales of int8's activations: by token as they come, or fixed by calibration.")
]
RangesOption = Annotated[RangeMethod, typer.Option(help="How fixed scales are chosen (static int8 and int8_qdq).")]
ReduceRangeOption = Annotated[
    bool | None, typer.Option(help="Seven bits a weight: exact without VNNI.", show_default="where this CPU needs it")
]
ReportOption = Annotated[
    Path | None, typer.Option(help="Also write the parity report here, even if a variant is refused.", show_default=False)
]


@app.command()
@handles_errors
def export(
    source: Annotated[str, typer.Argument(help="A model folder, a hub id, or the word demo.", show_default=False)],
    bundle: Annotated[Path, typer.Argument(help="The folder to write; a bundle there is replaced.", show_default=False)],
    precision: Annotated[str, typer.Option(help="Variants, separated by commas.")] = "fp32,int8",
    calibration: CalibrationOption = None,
    verification: VerificationOption = None,
    qrels: QrelsOption = None,
    gate: GateOption = None,
    no_gate: NoGateOption = False,
    no_repair: NoRepairOption = False,
    int8: RecipeOption = Int8Recipe.DYNAMIC,
    ranges: RangesOption = RangeMethod.MINMAX,
    reduce_range: ReduceRangeOption = None,
    report: ReportOption = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens of a pair.", show_default="the model's limit")] = None,
    query_max_length: Annotated[
        int | None, typer.Option(help="Tokens that a query keeps; the passage gives way.", show_default="64")
    ] = None,
    activation: Annotated[
        Activation | None, typer.Option(help="What predict() applies.", show_default="as the checkpoint says")
    ] = None,
    ranking_label: Annotated[
        int | None, typer.Option(help="The label that ranks.", show_default="the last of one or two")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="The hub's branch, tag or commit.", show_default=False)] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the checkpoint.")
    ] = False,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read weights from pickles, which can run code.")
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Export a cross-encoder to ONNX, quantize it, and prove that its ranking survived."""
    require_extras("export", "evaluate", "cpu", purpose="Exporting")
    from crossforge.export.exporter import ExportOptions, export_bundle
    from crossforge.export.source import SourceOptions

    options = ExportOptions(
        precisions=_parse_precisions(precision),
        source=SourceOptions(
            revision=revision,
            max_length=max_length,
            query_max_length=query_max_length,
            activation=activation,
            ranking_label=ranking_label,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
        ),
        gates=parse_gates(gate or ()),
        verification=verification,
        qrels=qrels,
        calibration=calibration,
        recipe=int8,
        range_method=ranges,
        reduce_range=reduce_range,
        repair=not no_repair,
        enforce_gates=not no_gate,
        report=report,
    )
    manifest = export_bundle(source, bundle, options, progress=TerminalProgress())
    if as_json:
        print_json({"bundle": str(bundle), "variants": _variants_document(manifest)})
        return
    out.print(f"Wrote [bold]{escape(str(bundle))}[/]. Next: crossforge rank {escape(str(bundle))} -q QUERY --passages FILE")


@app.command()
@handles_errors
def quantize(
    bundle: BundleArgument,
    precision: Annotated[str, typer.Option(help="Variants to add or to make anew, separated by commas.")] = "int8",
    output: Annotated[
        Path | None, typer.Option(help="The folder to write instead of changing BUNDLE.", show_default="BUNDLE")
    ] = None,
    calibration: CalibrationOption = None,
    verification: VerificationOption = None,
    qrels: QrelsOption = None,
    gate: GateOption = None,
    no_gate: NoGateOption = False,
    no_repair: NoRepairOption = False,
    int8: RecipeOption = Int8Recipe.DYNAMIC,
    ranges: RangesOption = RangeMethod.MINMAX,
    reduce_range: ReduceRangeOption = None,
    report: ReportOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Add variants to a bundle, made of its fp32 graph and held to the same gate. Needs no checkpoint."""
    require_extras("quantize", "evaluate", "cpu", purpose="Quantizing")
    from crossforge.export.options import VariantOptions
    from crossforge.export.quantize import quantize_bundle

    options = VariantOptions(
        gates=parse_gates(gate or ()),
        verification=verification,
        qrels=qrels,
        calibration=calibration,
        recipe=int8,
        range_method=ranges,
        reduce_range=reduce_range,
        repair=not no_repair,
        enforce_gates=not no_gate,
        report=report,
    )
    manifest = quantize_bundle(bundle, _parse_precisions(precision), options, target=output, progress=TerminalProgress())
    if as_json:
        print_json({"bundle": str(output or bundle), "variants": _variants_document(manifest)})
        return
    out.print(
        f"Wrote [bold]{escape(str(output or bundle))}[/]; reports/parity.md there says which queries each variant moves."
    )


@app.command()
@handles_errors
def trim(
    bundle: BundleArgument,
    target: Annotated[Path, typer.Argument(help="The folder to write; a bundle there is replaced.", show_default=False)],
    texts: Annotated[
        list[Path] | None,
        typer.Option(help="A text a line, or .jsonl; - is standard input; may be repeated.", show_default=False),
    ] = None,
    run: Annotated[
        list[Path] | None,
        typer.Option(
            help='JSON lines of {"qid", "query", "passages": [{"id", "text"}]}; may be repeated.', show_default=False
        ),
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Trim a bundle's vocabulary to the tokens that given texts use: on them it scores the same, and it is smaller."""
    require_extras("quantize", "cpu", purpose="Trimming")
    from crossforge.export.trimming import trim_bundle
    from crossforge.runtime.records import read_passages, read_run

    manifest = trim_bundle(
        bundle,
        target,
        [passage.text for path in texts or () for passage in read_passages(path)],
        runs=[read_run(path) for path in run or ()],
        progress=TerminalProgress(),
    )
    if as_json:
        print_json({"bundle": str(target), **_trimmed_document(manifest), "variants": _variants_document(manifest)})
        return
    out.print(
        f"Wrote [bold]{escape(str(target))}[/]: {manifest.trimmed}. Other words cost more tokens or become unknown, "
        "and so rank worse: docs/trim.md."
    )


@app.command()
@handles_errors
def evaluate(
    bundle: BundleArgument,
    run: Annotated[
        Path, typer.Option(help='JSON lines of {"qid", "query", "passages": [{"id", "text"}]}.', show_default=False)
    ],
    qrels: Annotated[Path, typer.Option(help="Judgements in TREC format.", show_default=False)],
    precision: Annotated[str | None, typer.Option(help="Variants, separated by commas.", show_default="all")] = None,
    min_relevance: Annotated[int, typer.Option(help="Lowest grade that MRR and recall count as relevant.")] = 1,
    provider: ProviderOption = "auto",
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Measure nDCG@10, MRR@10 and recall@100 of a bundle's variants, side by side."""
    from crossforge.export.evaluation import evaluate_bundle

    evaluation = evaluate_bundle(
        bundle,
        run,
        qrels,
        precisions=None if precision is None else _parse_precisions(precision),
        min_relevance=min_relevance,
        provider=provider,
        progress=TerminalProgress(),
    )
    if as_json:
        print_json(_evaluation_document(evaluation))
        return
    table = Table("", "nDCG@10", "MRR@10", "recall@100", "change (95 % interval)", "p", "Kendall tau", "pairs/s", box=None)
    table.add_row("first stage", *_figures(evaluation.first_stage), "", "", "", "")
    for name, variant in evaluation.variants.items():
        tau = "-" if variant.kendall_tau is None else f"{variant.kendall_tau:.4f}"
        change = p_value = ""
        if (difference := variant.difference) is not None:
            low, high = difference.interval_95
            change, p_value = f"{difference.mean:+.4f} ({low:+.4f} to {high:+.4f})", f"{difference.p_value:.3f}"
        table.add_row(name, *_figures(variant.quality), change, p_value, tau, f"{variant.pairs_per_s:.0f}")
    out.print(table)
    out.print(
        f"{evaluation.queries} queries, {evaluation.pairs} pairs; change of nDCG@10 and Kendall tau against "
        f"{evaluation.reference}; p by paired randomization."
    )
    if evaluation.unjudged_queries:
        out.print(f"{evaluation.unjudged_queries} queries of the run have no judgement and were left out.")


@app.command()
@handles_errors
def triton(
    bundle: BundleArgument,
    repository: Annotated[Path, typer.Argument(help="The model repository to write into.", show_default=False)],
    name: Annotated[str, typer.Option(help="The model's name.")] = "reranker",
    instances: Annotated[int, typer.Option(help="Processes that hold the model.")] = 1,
    precision: PrecisionOption = "auto",
    provider: ProviderOption = "auto",
    workers: Annotated[
        int | None, typer.Option(help="CPU threads of an instance.", show_default="one a core of the server")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a model of this name that this command wrote.")] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Write a bundle as a model of Triton Inference Server, for its Python backend."""
    from crossforge.export.triton import TritonOptions, write_model_repository

    options = TritonOptions(name=name, instances=instances, precision=precision, provider=provider, workers=workers)
    model = write_model_repository(bundle, repository, options, force=force)
    if as_json:
        print_json({"model": str(model), **vars(options)})
        return
    out.print(f"Wrote [bold]{escape(str(model))}[/]. Next: tritonserver --model-repository {escape(str(repository))}")


@app.command()
@handles_errors
def demo(
    bundle: Annotated[Path, typer.Option(help="Where the bundle is written.")] = DEFAULT_DEMO_BUNDLE,
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
            for name, entry in _variants_document(shown.manifest).items()
        }
        results = [{"corpus_id": row.corpus_id, "score": row.score, "text": row.text} for row in shown.results]
        print_json({"variants": document, "query": shown.record.query, "results": results, "precision": shown.precision})
        return
    out.print()
    out.print(f'[bold]"{shown.record.query}"[/] ranked by {shown.precision}:')
    print_ranking((row.score, shown.record.passages[row.corpus_id].id, row.text) for row in shown.results)
    out.print()
    summary = Table("variant", "MB", "pairs/s", "Kendall tau", "top-10 overlap", box=None, pad_edge=False)
    for name, entry in _variants_document(shown.manifest).items():
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


app.add_typer(build_app)
app.add_typer(runtime_app)


def main() -> None:
    """Run the command line."""
    try:
        app()
    except BrokenPipeError:
        # The reader of our output went away (`| head`); leave without a traceback when Python flushes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None


def _parse_precisions(text: str) -> tuple[Precision, ...]:
    try:
        return tuple(dict.fromkeys(Precision(name.strip()) for name in text.split(",")))
    except ValueError:
        raise InputError("unknown precision", got=repr(text), allowed=", ".join(Precision)) from None


def _figures(quality: Quality) -> tuple[str, str, str]:
    return f"{quality.ndcg_at_10:.4f}", f"{quality.mrr_at_10:.4f}", f"{quality.recall_at_100:.4f}"


def _evaluation_document(evaluation: Evaluation) -> dict[str, object]:
    """What ``--json`` says of an evaluation."""

    def figures(quality: Quality) -> dict[str, float]:
        return {"ndcg@10": quality.ndcg_at_10, "mrr@10": quality.mrr_at_10, "recall@100": quality.recall_at_100}

    return {
        "queries": evaluation.queries,
        "unjudged_queries": evaluation.unjudged_queries,
        "pairs": evaluation.pairs,
        "first_stage": figures(evaluation.first_stage),
        "reference": evaluation.reference,
        "variants": {
            name: {
                **figures(variant.quality),
                "ndcg@10_difference": variant.difference,
                "kendall_tau": variant.kendall_tau,
                "pairs_per_s": variant.pairs_per_s,
            }
            for name, variant in evaluation.variants.items()
        },
    }


def _trimmed_document(manifest: Manifest) -> dict[str, int]:
    trimmed = manifest.trimmed
    return {"kept_tokens": trimmed.kept_tokens, "removed_tokens": trimmed.removed_tokens} if trimmed else {}


def _variants_document(manifest: Manifest) -> dict[Precision, dict[str, object]]:
    """What ``--json`` says of each variant."""
    return {
        precision: {
            "path": variant.path,
            "size_bytes": sum(manifest.files[name].size_bytes for name in variant.files),
            "parity": variant.parity,
        }
        for precision, variant in manifest.variants.items()
    }
