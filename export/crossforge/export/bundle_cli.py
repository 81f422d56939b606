"""The commands that make bundles: ``export``, ``quantize``, ``trim``, ``triton``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from crossforge.export.gates import parse_gates
from crossforge.export.options import CausalOptions, Int8Recipe, RangeMethod, SourceOptions, VariantOptions
from crossforge.export.requirements import require_extras
from crossforge.profiles import Activation, InputError, Manifest, Precision
from crossforge.runtime.cli_options import (
    RUN_FORMAT,
    BundleArgument,
    DebugOption,
    JsonOption,
    PrecisionOption,
    ProviderOption,
    TargetArgument,
)
from crossforge.runtime.console import TerminalProgress, handles_errors, out, print_json

app = typer.Typer(add_completion=False)

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
    typer.Option(help="A threshold, [PRECISION:]NAME=NUMBER, such as int8:min_kendall_tau=0.97; repeat for more."),
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
ReportOption = Annotated[Path | None, typer.Option(help="Also write the parity report here, even if a variant is refused.")]


@app.command()
@handles_errors
def export(
    source: Annotated[str, typer.Argument(help="A model folder, a hub id, or the word demo or demo-embedder.")],
    bundle: TargetArgument,
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
    symmetric: Annotated[
        bool, typer.Option("--symmetric", help="Neither text is a query (similarity, duplicates): the longer one gives way.")
    ] = False,
    activation: Annotated[
        Activation | None, typer.Option(help="What predict() applies.", show_default="as the checkpoint says")
    ] = None,
    ranking_label: Annotated[
        int | None, typer.Option(help="The label that ranks.", show_default="the last of one or two")
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(help="The source is a causal reranker: qwen3, or a TOML file with its text."),
    ] = None,
    yes_token: Annotated[str | None, typer.Option(help="A causal reranker's yes.", show_default="yes")] = None,
    no_token: Annotated[str | None, typer.Option(help="A causal reranker's no.", show_default="no")] = None,
    instruction: Annotated[
        str | None, typer.Option(help="What a causal reranker is told to look for.", show_default="the template's")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="The hub's branch, tag or commit.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the checkpoint.")
    ] = False,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read weights from pickles, which can run code.")
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Export a cross-encoder or a bi-encoder to ONNX, quantize it, and prove that its ranking survived."""
    require_extras("export", "evaluate", "cpu", purpose="Exporting")
    from crossforge.export.exporter import ExportOptions, export_bundle

    options = ExportOptions(
        precisions=parse_precisions(precision),
        source=SourceOptions(
            revision=revision,
            max_length=max_length,
            query_max_length=query_max_length,
            symmetric=symmetric,
            activation=activation,
            ranking_label=ranking_label,
            causal=CausalOptions(template=template, yes_token=yes_token, no_token=no_token, instruction=instruction),
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
        ),
        gates=parse_gates(gate or (), judged=qrels is not None),
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
        print_json({"bundle": str(bundle), "variants": variants_document(manifest)})
        return
    rank = f"crossforge rank {bundle} -q QUERY --passages FILE"
    embed = f'in Python, crossforge.runtime.Embedder.load("{bundle}")'
    out.print(f"Wrote [bold]{escape(str(bundle))}[/]. Next: {escape(embed if manifest.embedding else rank)}")


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
    from crossforge.export.quantize import quantize_bundle

    options = VariantOptions(
        gates=parse_gates(gate or (), judged=qrels is not None),
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
    manifest = quantize_bundle(bundle, parse_precisions(precision), options, target=output, progress=TerminalProgress())
    if as_json:
        print_json({"bundle": str(output or bundle), "variants": variants_document(manifest)})
        return
    out.print(
        f"Wrote [bold]{escape(str(output or bundle))}[/]; reports/parity.md there says which queries each variant moves."
    )


@app.command()
@handles_errors
def trim(
    bundle: BundleArgument,
    target: TargetArgument,
    texts: Annotated[
        list[Path] | None,
        typer.Option(help="A text a line, or .jsonl; - is standard input; may be repeated."),
    ] = None,
    run: Annotated[
        list[Path] | None,
        typer.Option(help=f"{RUN_FORMAT}; may be repeated."),
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
        print_json({"bundle": str(target), **_trimmed_document(manifest), "variants": variants_document(manifest)})
        return
    out.print(
        f"Wrote [bold]{escape(str(target))}[/]: {manifest.trimmed}. Other words cost more tokens or become unknown, "
        "and so rank worse: docs/trim.md."
    )


@app.command()
@handles_errors
def triton(
    bundle: BundleArgument,
    repository: Annotated[Path, typer.Argument(help="The model repository to write into.")],
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


def parse_precisions(text: str) -> tuple[Precision, ...]:
    """Precisions from a list with commas, each once."""
    try:
        return tuple(dict.fromkeys(Precision(name.strip()) for name in text.split(",")))
    except ValueError:
        raise InputError("unknown precision", got=repr(text), allowed=", ".join(Precision)) from None


def _trimmed_document(manifest: Manifest) -> dict[str, int]:
    trimmed = manifest.trimmed
    return {"kept_tokens": trimmed.kept_tokens, "removed_tokens": trimmed.removed_tokens} if trimmed else {}


def variants_document(manifest: Manifest) -> dict[Precision, dict[str, object]]:
    """What ``--json`` says of each variant."""
    return {
        precision: {
            "path": variant.path,
            "size_bytes": sum(manifest.files[name].size_bytes for name in variant.files),
            "parity": variant.parity,
        }
        for precision, variant in manifest.variants.items()
    }
