"""The command that measures: ``profile``."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.markup import escape

from crossforge.profiles import ExecutionProvider, InputError, MissingPackageError, Precision
from crossforge.runtime.cli_options import (
    DebugOption,
    DeploymentOption,
    JsonOption,
)
from crossforge.runtime.console import TerminalProgress, err, handles_errors, out, print_json
from crossforge.runtime.profiling.options import (
    DEFAULT_BUDGET_S,
    DEFAULT_CANDIDATES,
    DEFAULT_LENGTHS,
    DEFAULT_QUERY_TOKENS,
    ProfileOptions,
)

if TYPE_CHECKING:
    from crossforge.runtime.profiling.compare import Comparison
    from crossforge.runtime.profiling.report import LatencyReport

app = typer.Typer(add_completion=False)

_PAGE_MODULE = "crossforge.export.latency_page"
"""A floor above: looked for by name when a page is asked for, so that the runtime does not depend on it."""

_LOAD_CANDIDATES, _LOAD_LENGTH = 20, 128
"""The request that is sent under load where none is described."""

Name = TypeVar("Name", bound=StrEnum)
Number = TypeVar("Number", int, float)


def _listed(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))


@app.command()
@handles_errors
def profile(
    bundle: Annotated[str | None, typer.Argument(help="As in other commands; with --url it may be left out.")] = None,
    candidates: Annotated[
        str | None, typer.Option(help="Passages a query, separated by commas.", show_default=_listed(DEFAULT_CANDIDATES))
    ] = None,
    lengths: Annotated[
        str | None, typer.Option(help="Tokens of a pair, separated by commas.", show_default=_listed(DEFAULT_LENGTHS))
    ] = None,
    query_tokens: Annotated[
        int | None, typer.Option(help="Tokens of the query, of those.", show_default=str(DEFAULT_QUERY_TOKENS))
    ] = None,
    workload: Annotated[
        Path | None,
        typer.Option(help="A run (JSON lines) whose queries are measured instead of the grid."),
    ] = None,
    provider: Annotated[
        str | None, typer.Option(help="Providers, separated by commas.", show_default="all that run here")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="Variants, separated by commas.", show_default="all that are made for the provider")
    ] = None,
    deployment: DeploymentOption = None,
    budget: Annotated[float, typer.Option(help="Seconds that the whole run may take.")] = DEFAULT_BUDGET_S,
    interval_width: Annotated[
        float, typer.Option(help="A row is done when the 95 % interval of its median is narrower than this share of it.")
    ] = 0.05,
    cold_starts: Annotated[int, typer.Option(help="Fresh processes started for each variant.")] = 3,
    output: Annotated[Path, typer.Option("--out", help="Where the report goes.")] = Path("latency.json"),
    rate: Annotated[
        str | None,
        typer.Option(
            help="Measure load instead: requests a second that arrive by chance, or several such rates with commas.",
        ),
    ] = None,
    slo_ms: Annotated[
        float | None,
        typer.Option(
            help="What 99 of 100 requests must keep; without --rate, the highest rate that does is looked for.",
        ),
    ] = None,
    duration: Annotated[float, typer.Option(help="With --rate or --slo-ms: seconds of arrivals, of each trial.")] = 10.0,
    url: Annotated[
        str | None,
        typer.Option(help="With --rate or --slo-ms: a running service to load (POST /rerank)."),
    ] = None,
    add_to: Annotated[
        Path | None,
        typer.Option(help="With --rate or --slo-ms: a report whose rows stand beside the load."),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Also write the report as a page.")] = None,
    png: Annotated[Path | None, typer.Option(help="Also write its plots as a picture.")] = None,
    compare: Annotated[Path | None, typer.Option(help="A report to compare with; exit 1 if a row is slower.")] = None,
    tolerance: Annotated[
        float, typer.Option(help="With --compare: a slowdown that is accepted beside the measured noise, as a share.")
    ] = 0.05,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Measure latency on this machine: by variant, candidates and length, or under load."""
    from crossforge.runtime.profiling.compare import compare_reports
    from crossforge.runtime.profiling.load_report import Slo
    from crossforge.runtime.profiling.profiler import measure_latency
    from crossforge.runtime.profiling.under_load import LoadOptions, measure_under_load

    if workload is not None and (candidates, lengths, query_tokens) != (None, None, None):
        raise InputError("--workload takes the place of a grid", allowed="it, or --candidates, --lengths, --query-tokens")
    under_load = rate is not None or slo_ms is not None
    if under_load:
        _refuse({"--compare": compare}, "compares rows, and load has none")
    else:
        _refuse({"--url": url, "--add-to": add_to}, "is for load: name a --rate or --slo-ms")
    if url is not None:
        _refuse({"--provider": provider, "--precision": precision, "--deployment": deployment}, "is the service's choice")
    if bundle is None:
        _refuse({"--lengths": lengths, "--query-tokens": query_tokens}, "counts tokens, for which a bundle is needed")
    options = ProfileOptions(
        candidates=_parse_numbers(candidates, "--candidates") or ((_LOAD_CANDIDATES,) if under_load else DEFAULT_CANDIDATES),
        lengths=_parse_numbers(lengths, "--lengths") or ((_LOAD_LENGTH,) if under_load else DEFAULT_LENGTHS),
        query_tokens=DEFAULT_QUERY_TOKENS if query_tokens is None else query_tokens,
        workload=workload,
        providers=_parse_names(provider, ExecutionProvider, "execution provider", tuple(ExecutionProvider)),
        precisions=_parse_names(precision, Precision, "precision", tuple(Precision)),
        deployment=deployment,
        budget_s=budget,
        interval_width=interval_width,
        cold_starts=cold_starts,
    )
    old, base = _read_comparable(compare, bundle), _read_comparable(add_to, bundle)
    for target in (output, html, png):
        _check_target(target)
    page = None if html is None and png is None else _page_module()
    if under_load:
        load = LoadOptions(
            rates_per_s=_parse_numbers(rate, "--rate", float),
            slo=None if slo_ms is None else Slo(latency_ms=slo_ms),
            duration_s=duration,
            url=url,
        )
        report = measure_under_load(bundle, options, load, progress=TerminalProgress())
        report = report if base is None else replace(base, load=report.load)
    elif bundle is not None:
        report = measure_latency(bundle, options, progress=TerminalProgress())
    else:
        raise InputError("there is nothing to measure", allowed="a bundle, or --url with --rate or --slo-ms")
    _write(output, report.to_json())
    if page is not None and html is not None:
        page.write_latency_page(report, html)
    if page is not None and png is not None:
        page.write_latency_picture(report, png)
    comparison = None if old is None else compare_reports(old, report, tolerance=tolerance)
    _print(report, comparison, output, under_load=under_load, as_json=as_json)
    if not (comparison is None or comparison.passed) or not (report.load is None or report.load.passed):
        raise typer.Exit(1)


def _print(report: LatencyReport, comparison: Comparison | None, output: Path, *, under_load: bool, as_json: bool) -> None:
    from crossforge.runtime.profiling.compare import explain
    from crossforge.runtime.profiling.summary import (
        comparison_document,
        comparison_table,
        explain_load,
        latency_table,
        load_table,
        print_whole,
        report_document,
        variant_table,
    )

    if not under_load:
        for item in report.skipped:
            err.print(f"[yellow]Not measured:[/] {escape(f'{item.what}: {item.why}')}")
    if as_json:
        document = report_document(report) | {"report": str(output)}
        print_json(document if comparison is None else document | {"comparison": comparison_document(comparison)})
    else:
        if under_load and report.load is not None:
            print_whole(out, load_table(report.load))
            for line in explain_load(report.load):
                out.print(escape(line))
        else:
            print_whole(out, latency_table(report))
            out.print()
            print_whole(out, variant_table(report))
        out.print(f"\nEvery sample is in {escape(str(output))}.")
        if comparison is not None:
            out.print()
            print_whole(out, comparison_table(comparison))
            for note in comparison.notes:
                out.print(f"[dim]{escape(note)}[/]")
    if comparison is not None:
        err.print(explain(comparison))


def _refuse(given: Mapping[str, object], why: str) -> None:
    for option, value in given.items():
        if value is not None:
            raise InputError(f"{option} {why}", got=value)


def _read_comparable(path: Path | None, bundle: str | None) -> LatencyReport | None:
    """A report of this machine and, where there is one, this bundle."""
    from crossforge.runtime.bundle import Bundle
    from crossforge.runtime.machine import inspect_machine
    from crossforge.runtime.profiling.compare import refuse_incomparable
    from crossforge.runtime.profiling.report import LatencyReport

    if path is None:
        return None
    report = LatencyReport.read(path)
    weights = report.weights_sha256 if bundle is None else Bundle.open(bundle).manifest.source.weights_sha256
    refuse_incomparable(report, inspect_machine(), weights)
    return report


def _parse_numbers(text: str | None, option: str, number: Callable[[str], Number] = int) -> tuple[Number, ...]:
    if text is None:
        return ()
    try:
        return tuple(dict.fromkeys(number(part) for part in text.split(",")))
    except ValueError:
        raise InputError(f"{option} is no list of numbers", got=repr(text), allowed="such as 1,10,100") from None


def _parse_names(text: str | None, names: type[Name], what: str, allowed: Sequence[Name]) -> tuple[Name, ...]:
    if text is None:
        return ()
    try:
        return tuple(dict.fromkeys(names(part.strip()) for part in text.split(",")))
    except ValueError:
        raise InputError(f"unknown {what}", got=repr(text), allowed=", ".join(allowed)) from None


def _check_target(path: Path | None) -> None:
    """Before minutes of measuring, not after."""
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise InputError(f"cannot write {path}", got="a folder" if path.is_dir() else f"no folder {path.parent}")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror or error})") from error


def _page_module() -> ModuleType:
    try:
        module = importlib.import_module(_PAGE_MODULE)
    except ImportError as error:
        raise MissingPackageError(str(error.name), extra="report", purpose="Writing the report as a page") from error
    module.require_page_library()
    return module
