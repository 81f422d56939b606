"""The command that measures: ``profile``."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar, cast

import typer
from rich.markup import escape

from crossforge.profiles import ExecutionProvider, InputError, MissingPackageError, Precision
from crossforge.runtime.console import DebugOption, JsonOption, TerminalProgress, err, handles_errors, out, print_json
from crossforge.runtime.profiling.options import (
    DEFAULT_BUDGET_S,
    DEFAULT_CANDIDATES,
    DEFAULT_LENGTHS,
    DEFAULT_QUERY_TOKENS,
    ProfileOptions,
)

if TYPE_CHECKING:
    from crossforge.runtime.profiling.report import LatencyReport

app = typer.Typer(add_completion=False)

_PAGE_MODULE = "crossforge.export.latency_page"
"""A floor above: looked for by name when a page is asked for, so that the runtime does not depend on it."""

_LOAD_CANDIDATES, _LOAD_LENGTH = 20, 128
"""The request that is sent under load where none is described."""

Name = TypeVar("Name", bound=StrEnum)


def _listed(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))


@app.command()
@handles_errors
def profile(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.", show_default=False)],
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
        typer.Option(help="A run (JSON lines) whose queries are measured instead of the grid.", show_default=False),
    ] = None,
    provider: Annotated[
        str | None, typer.Option(help="Providers, separated by commas.", show_default="all that run here")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="Variants, separated by commas.", show_default="all that are made for the provider")
    ] = None,
    budget: Annotated[float, typer.Option(help="Seconds that the whole run may take.")] = DEFAULT_BUDGET_S,
    interval_width: Annotated[
        float, typer.Option(help="A row is done when the 95 % interval of its median is narrower than this share of it.")
    ] = 0.05,
    cold_starts: Annotated[int, typer.Option(help="Fresh processes started for each variant.")] = 3,
    output: Annotated[Path, typer.Option("--out", help="Where the report goes.")] = Path("latency.json"),
    rate: Annotated[
        float | None, typer.Option(help="Requests a second that arrive by chance, whether or not any was answered.")
    ] = None,
    slo_ms: Annotated[
        float | None, typer.Option(help="Without --rate: find the highest rate that keeps 99 of 100 requests within this.")
    ] = None,
    duration: Annotated[float, typer.Option(help="With --rate or --slo-ms: seconds of arrivals, of each trial.")] = 10.0,
    html: Annotated[Path | None, typer.Option(help="Also write the report as a page.", show_default=False)] = None,
    compare: Annotated[
        Path | None, typer.Option(help="A report to compare with; exit 1 if a row is slower.", show_default=False)
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="With --compare: a slowdown that is accepted beside the measured noise, as a share.")
    ] = 0.05,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Measure latency on this machine: by variant, candidates and length, each call split into its stages."""
    from crossforge.runtime.bundle import Bundle
    from crossforge.runtime.machine import inspect_machine
    from crossforge.runtime.profiling.compare import compare_reports, explain, refuse_incomparable
    from crossforge.runtime.profiling.profiler import measure_latency
    from crossforge.runtime.profiling.report import LatencyReport
    from crossforge.runtime.profiling.summary import (
        comparison_document,
        comparison_table,
        latency_table,
        print_whole,
        report_document,
        variant_table,
    )

    if workload is not None and (candidates, lengths, query_tokens) != (None, None, None):
        raise InputError("--workload takes the place of a grid", allowed="it, or --candidates, --lengths, --query-tokens")
    options = ProfileOptions(
        candidates=DEFAULT_CANDIDATES if candidates is None else _parse_numbers(candidates, "--candidates"),
        lengths=DEFAULT_LENGTHS if lengths is None else _parse_numbers(lengths, "--lengths"),
        query_tokens=DEFAULT_QUERY_TOKENS if query_tokens is None else query_tokens,
        workload=workload,
        providers=_parse_names(provider, ExecutionProvider, "execution provider", ExecutionProvider),
        precisions=_parse_names(precision, Precision, "precision", tuple(Precision)),
        budget_s=budget,
        interval_width=interval_width,
        cold_starts=cold_starts,
    )
    if rate is not None or slo_ms is not None:
        from crossforge.runtime.profiling.load_cli import profile_load

        _check_target(output)
        options = dataclasses.replace(
            options,
            candidates=options.candidates if workload or candidates else (_LOAD_CANDIDATES,),
            lengths=options.lengths if workload or lengths else (_LOAD_LENGTH,),
        )
        profile_load(
            bundle,
            options,
            rate_per_s=rate,
            slo_ms=slo_ms,
            duration_s=duration,
            output=output,
            as_json=as_json,
            progress=TerminalProgress(),
        )
        return
    old = None if compare is None else LatencyReport.read(compare)
    if old is not None:
        opened = Bundle.open(bundle)
        refuse_incomparable(old, inspect_machine(), opened.manifest.source.weights_sha256)
    for target in (output, html):
        _check_target(target)
    write_page = None if html is None else _page_writer()
    report = measure_latency(bundle, options, progress=TerminalProgress())
    _write(output, report.to_json())
    if html is not None and write_page is not None:
        write_page(report, html)
    comparison = None if old is None else compare_reports(old, report, tolerance=tolerance)
    for item in report.skipped:
        err.print(f"[yellow]Not measured:[/] {escape(f'{item.what}: {item.why}')}")
    if as_json:
        document = report_document(report) | {"report": str(output)}
        print_json(document if comparison is None else document | {"comparison": comparison_document(comparison)})
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
        if not comparison.passed:
            raise typer.Exit(1)


def _parse_numbers(text: str, option: str) -> tuple[int, ...]:
    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(",")))
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


def _page_writer() -> Callable[[LatencyReport, Path], object]:
    try:
        module = importlib.import_module(_PAGE_MODULE)
    except ImportError as error:
        raise MissingPackageError(str(error.name), extra="report", purpose="Writing the report as a page") from error
    module.require_page_library()
    return cast("Callable[[LatencyReport, Path], object]", module.write_latency_page)
