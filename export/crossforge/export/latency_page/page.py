"""The page: figures, tables and the library that draws them, in one file."""

from __future__ import annotations

import functools
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossforge.export.latency_page.figures import draw_figures
from crossforge.export.latency_page.plotted import CUT_SHORT, WHOLE, Names
from crossforge.export.latency_page.theme import THEMES
from crossforge.export.requirements import require_extras
from crossforge.profiles import InputError
from crossforge.runtime.profiling.load_report import Outcome
from crossforge.runtime.profiling.report import LatencyReport

if TYPE_CHECKING:
    import altair as alt

PAGE_NAME = "reports/latency.html"
_TEMPLATE = Path(__file__).with_name("page.html")
_SNIPPET = "window.vegaEmbed = vegaEmbed;"
"""The one name that the page uses of the library."""
_ABSENT = "–"
_CAPTION_CHARS = 140
"""Of a line below a title in a picture, which does not wrap by itself."""


def require_page_library() -> None:
    """Make sure that a page can be drawn, before the work of measuring what it would show.

    Raises:
        MissingPackageError: The ``report`` extra is not installed.
    """
    require_extras("report", purpose="Drawing a latency report")


def write_latency_page(report: LatencyReport, path: str | Path) -> None:
    """Write a report as one HTML file that needs nothing else: no network, no other file.

    Args:
        report: What was measured.
        path: The file to write; its folder must exist.

    Raises:
        InputError: The report has nothing to show, or the file cannot be written.
        MissingPackageError: The ``report`` extra is not installed.
    """
    _require(report)
    import jinja2

    figures = draw_figures(report)
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        report=report,
        machine=machine_facts(report),
        variants=variant_table(report),
        rows=row_table(report),
        runs=run_table(report),
        figures=figures,
        specifications={figure.key: _specification(figure.chart) for figure in figures},
        themes=THEMES,
        library=_library(),
    )
    _write(Path(path), page.encode())


def write_latency_picture(
    report: LatencyReport,
    path: str | Path,
    *,
    theme: str = "light",
    scale: float = 1.5,
) -> None:
    """Write the figures of a report, one below the other, as a PNG. Needs no browser.

    Args:
        report: What was measured.
        path: The file to write; its folder must exist.
        theme: ``light`` or ``dark``.
        scale: Pixels of the picture for each of the page.

    Raises:
        InputError: The report has nothing to show, the file cannot be written, or there is no such theme.
        MissingPackageError: The ``report`` extra is not installed.
    """
    if theme not in THEMES:
        raise InputError("there is no such theme", got=theme, allowed=", ".join(THEMES))
    _require(report)
    import altair as alt
    import vl_convert

    figures = draw_figures(report)
    charts: list[Any] = [
        figure.chart.properties(
            title=alt.Title(figure.title, subtitle=textwrap.wrap(figure.caption, _CAPTION_CHARS), anchor="start")
        )
        for figure in figures
    ]
    column = alt.vconcat(*charts, spacing=36).resolve_scale(color="independent", shape="independent")
    config = THEMES[theme] | {"padding": 20}
    _write(Path(path), vl_convert.vegalite_to_png(_specification(column), config=config, scale=scale))


def machine_facts(report: LatencyReport) -> list[tuple[str, str]]:
    """What the figures were taken on, as name and value."""
    machine = report.machine
    return [
        ("processor", machine.cpu),
        ("cores", f"{machine.usable_cores} usable of {machine.total_cores}"),
        ("instruction sets", ", ".join(machine.instruction_sets) or _ABSENT),
        ("GPU", ", ".join(machine.gpus) or f"none: {machine.gpu_reason}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in report.versions.items())),
        *(() if report.import_ms is None else [("import of the runtime", f"{report.import_ms:,.0f} ms")]),
        *(() if report.peak_resident_bytes is None else [("peak memory", _megabytes(report.peak_resident_bytes))]),
        *(() if report.weights_sha256 is None else [("weights", f"sha256 {report.weights_sha256[:12]}…")]),
    ]


def variant_table(report: LatencyReport) -> list[dict[str, str]]:
    """One row a variant: what it is besides its latency."""
    names = Names(report)
    return [
        {
            "variant": names.of(variant),
            "workers": f"{variant.workers:,}",
            "token budget": f"{variant.budget_tokens:,}",
            "size": _megabytes(variant.size_bytes),
            "load": f"{variant.load_ms:,.0f} ms",
            "first call": f"{variant.first_call_ms:,.1f} ms",
            "memory": _megabytes(variant.resident_bytes),
            "Kendall's tau": _or_absent(variant.kendall_tau, ".4f"),
            "nDCG@10": _or_absent(variant.ndcg_at_10, ".4f"),
            "of GEMM ceiling": _or_absent(variant.gemm_share, ".0%"),
        }
        for variant in report.variants
    ]


def row_table(report: LatencyReport) -> list[dict[str, str]]:
    """Every row in figures."""
    names = Names(report)
    return [
        {
            "variant": names.of(row),
            "candidates": f"{row.candidates:,}",
            "tokens a pair": f"{row.sequence_length:,}",
            **{f"p{percent} ms": f"{row.percentile_ms(percent):,.2f}" for percent in (50, 90, 95, 99)},
            "pairs/s": f"{row.pairs_per_s:,.0f}",
            "tokens/s": f"{row.tokens_per_s:,.0f}",
            "padding": f"{row.padding_waste:.0%}",
            "samples": f"{len(row.samples_ms):,}",
        }
        for row in report.rows
    ]


def run_table(report: LatencyReport) -> list[dict[str, str]]:
    """Every run under load in figures, by rate."""
    runs = () if report.load is None else report.load.runs
    return [
        {
            "requests/s": f"{run.rate_per_s:,.2f}",
            "sent": f"{len(run.outcomes):,}",
            "answered/s": f"{run.achieved_per_s:,.2f}",
            **{f"p{percent} ms": _or_absent(run.percentile_ms(percent), ",.2f") for percent in (50, 90, 95, 99)},
            "refused": f"{run.count(Outcome.REJECTED):,}",
            "otherwise unanswered": f"{len(run.outcomes) - run.count(Outcome.ANSWERED) - run.count(Outcome.REJECTED):,}",
            "run": CUT_SHORT if run.stopped_early else WHOLE,
        }
        for run in sorted(runs, key=lambda run: run.rate_per_s)
    ]


def _require(report: LatencyReport) -> None:
    if not report.rows and report.load is None:
        raise InputError("the latency report has no row to show, and no load")
    require_page_library()


@functools.cache
def _library() -> str:
    import vl_convert

    # A string in the library that closes the element would end the script there.
    return vl_convert.javascript_bundle(_SNIPPET).replace("</script", "<\\/script")


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror or error})") from error


def _specification(chart: alt.TopLevelMixin) -> dict[str, Any]:
    import altair as alt

    with alt.data_transformers.enable("default", max_rows=None):
        specification: dict[str, Any] = chart.to_dict()
    # Altair's own theme lies in "config" and would come before the page's; "$schema" is an address that nothing needs.
    for key in ("config", "$schema"):
        specification.pop(key, None)
    return specification


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB"


def _or_absent(value: float | None, form: str) -> str:
    return _ABSENT if value is None else format(value, form)
