"""The figures of a latency report, as Vega-Lite specifications made with Altair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from crossforge.export.latency_page.plotted import (
    BETWEEN_STAGES,
    CUT_SHORT,
    LOAD_PERCENTILES,
    WHOLE,
    Names,
    Quality,
    Record,
    call_name,
    chosen_cells,
    is_grid,
    latency_records,
    load_records,
    log_ticks,
    quality_records,
    stage_records,
)
from crossforge.runtime.profiling.load_report import LoadCurve
from crossforge.runtime.profiling.report import LatencyReport

if TYPE_CHECKING:
    import altair as alt

PAGE_WIDTH = 1050
"""Pixels that a figure may fill, its axes included."""
_WIDEST_PANEL = 640
_MOST_COLUMNS = 12
"""Columns of a heat map past which a figure in each cell could not be read."""
_STAGE_COLORS = {
    "tokenize": "#d9812f",
    "plan": "#c94f7c",
    "collate": "#7b6fd0",
    "compute": "#93a1b1",
    "postprocess": "#3f9e8f",
    BETWEEN_STAGES: "#c9b458",
}
"""Compute, which is nearly all of a long call, in grey: the others are what a reader looks for."""
_AUXILIARY_COLOR = "#8a8f98"
"""Readable on both backgrounds."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One plot and what is said about it."""

    key: str
    """Its element's id."""
    title: str
    caption: str
    chart: alt.TopLevelMixin


def draw_figures(report: LatencyReport) -> tuple[Figure, ...]:
    """Every figure that the report has data for, in the order of the page; a single variant has nothing to trade off."""
    figures = []
    if report.rows:
        names = Names(report).all
        figures += [_latency(report, names), _heat_map(report, names), _stages(report, names)]
        if (quality := quality_records(report)) and len(quality.points) > 1:
            figures.append(_trade_off(quality, names))
    if report.load is not None and (records := load_records(report.load)):
        figures.append(_load_curve(report.load, records))
    return tuple(figures)


def _latency(report: LatencyReport, names: Sequence[str]) -> Figure:
    import altair as alt

    records = latency_records(report)
    lengths = sorted({record["length"] for record in records})
    paneled = is_grid(report)
    columns = min(3, len(lengths)) if paneled else 1
    along, along_title = ("candidates", "candidates") if paneled else ("tokens", "tokens of a call")
    values = sorted({record[along] for record in records})
    base = alt.Chart(_data(records)).encode(
        x=alt.X(
            f"{along}:Q",
            title=along_title,
            scale=alt.Scale(type="log", domain=[values[0], values[-1]] if len(values) > 1 else alt.Undefined),
            axis=alt.Axis(values=values, labelOverlap="greedy", grid=False)
            if paneled
            else alt.Axis(values=log_ticks(values), format="~s", grid=False),
        ),
        color=_variant_color(names),
    )
    times = [record[key] for record in records for key in ("p50_ms", "p99_ms")]
    y = alt.Y("p50_ms:Q", title="ms", scale=alt.Scale(type="log", nice=False), axis=_log_axis(times))
    tooltip = [
        alt.Tooltip("variant:N"),
        alt.Tooltip("candidates:Q"),
        alt.Tooltip("length:Q", title="tokens a pair"),
        *(alt.Tooltip(f"p{percent}_ms:Q", title=f"p{percent} (ms)") for percent in (50, 90, 95, 99)),
        alt.Tooltip("pairs_per_s:Q", title="pairs/s", format=",.0f"),
        alt.Tooltip("samples:Q"),
    ]
    upper = alt.Y("p90_ms:Q", title="ms")
    band = base.mark_area(opacity=0.3, line=False).encode(y=upper, y2="p99_ms:Q")
    whisker = base.mark_rule(opacity=0.6).encode(y=upper, y2="p99_ms:Q")
    line = base.mark_line(strokeWidth=1.8).encode(y=y)
    points = base.mark_point(filled=True, size=32, opacity=1).encode(y=y, tooltip=tooltip)
    panel = alt.layer(band, whisker, line, points).properties(width=_panel_width(columns, 22, around=50), height=220)
    chart = (
        panel.facet(facet=alt.Facet("length:O", title=None, header=_header("' tokens a pair'")), columns=columns)
        if paneled
        else panel
    )
    return Figure(
        key="latency",
        title="Latency by candidates" if paneled else "Latency by tokens",
        caption="One query's call. The line is the median; the band reaches from p90 to p99. Both axes are logarithmic.",
        chart=chart,
    )


def _heat_map(report: LatencyReport, names: Sequence[str]) -> Figure:
    import altair as alt

    records = latency_records(report)
    times = [record["p50_ms"] for record in records]
    middle = (min(times) * max(times)) ** 0.5
    exact = is_grid(report) and len({record["candidates"] for record in records}) <= _MOST_COLUMNS
    columns = min(3, len(names))
    x: dict[str, Any] = {"title": "candidates", "axis": alt.Axis(labelAngle=0, labelOverlap="greedy")}
    y: dict[str, Any] = {"title": "tokens a pair", "axis": alt.Axis(labelOverlap="greedy")}
    base = alt.Chart(_data(records)).encode(
        x=alt.X("candidates:O", **x) if exact else alt.X("candidates:Q", bin=alt.Bin(maxbins=_MOST_COLUMNS), **x),
        y=alt.Y("length:O", sort="descending", **y) if exact else alt.Y("length:Q", bin=alt.Bin(maxbins=_MOST_COLUMNS), **y),
        tooltip=[
            alt.Tooltip("variant:N"),
            alt.Tooltip("candidates:Q", bin=not exact),
            alt.Tooltip("length:Q", title="tokens a pair", bin=not exact),
            alt.Tooltip("mean(p50_ms):Q", title="p50 (ms)", format=".4~r"),
            alt.Tooltip("mean(pairs_per_s):Q", title="pairs/s", format=",.0f"),
        ],
    )
    cells = base.mark_rect().encode(
        color=alt.Color(
            "mean(p50_ms):Q",
            scale=alt.Scale(type="log", scheme="viridis"),
            legend=alt.Legend(title="p50 (ms)", orient="top", gradientLength=260, format=".3~r", values=log_ticks(times)),
        ),
    )
    figures = base.mark_text(fontSize=11).encode(
        text=alt.Text("mean(p50_ms):Q", format=".3~s" if max(times) >= 10_000 else ".3~r"),
        color=alt.condition(f"datum.mean_p50_ms > {middle}", alt.value("#000000"), alt.value("#ffffff")),
    )
    panel = (alt.layer(cells, figures) if exact else alt.layer(cells)).properties(
        width=_panel_width(columns, 62), height=190
    )
    return Figure(
        key="heat-map",
        title="Candidates × length",
        caption="Median milliseconds of a call."
        if exact
        else "Median milliseconds of a call; a cell shows the mean of its calls.",
        chart=panel.facet(facet=_by_variant(names), columns=columns).resolve_axis(x="independent", y="independent"),
    )


def _stages(report: LatencyReport, names: Sequence[str]) -> Figure:
    import altair as alt

    calls = [call_name(*cell) for cell in chosen_cells(report)]
    records = [record for record in stage_records(report) if record["call"] in calls]
    chart = (
        alt.Chart(_data(records))
        .mark_bar()
        .encode(
            x=alt.X(
                "share:Q",
                title="share of a call",
                stack="zero",
                scale=alt.Scale(domain=[0, 1]),
                axis=alt.Axis(format="%", tickCount=4),
            ),
            y=alt.Y("call:N", title=None, sort=calls, axis=alt.Axis(labelOverlap=False)),
            color=alt.Color(
                "stage:N",
                sort=list(_STAGE_COLORS),
                scale=alt.Scale(domain=list(_STAGE_COLORS), range=list(_STAGE_COLORS.values())),
                legend=alt.Legend(title=None, orient="top"),
            ),
            order="order:Q",
            tooltip=[
                alt.Tooltip("variant:N"),
                alt.Tooltip("candidates:Q"),
                alt.Tooltip("length:Q", title="tokens a pair"),
                alt.Tooltip("stage:N"),
                alt.Tooltip("ms:Q", title="median (ms)"),
                alt.Tooltip("share:Q", format=".1%"),
            ],
        )
        .properties(width=_panel_width(len(names), 22, around=75), height=alt.Step(17))
        .facet(column=alt.Column("variant:N", title=None, sort=list(names)))
    )
    return Figure(
        key="stages",
        title="Where the time goes",
        caption="Calls of candidates × tokens by their stages: shares of the medians' sum. The tooltip gives milliseconds.",
        chart=chart,
    )


def _trade_off(quality: Quality, names: Sequence[str]) -> Figure:
    import altair as alt

    front = sorted((point for point in quality.points if point["on_front"]), key=lambda point: float(point["pairs_per_s"]))
    speeds = [point["pairs_per_s"] for point in quality.points]
    if max(speeds) < 10 * min(speeds):
        x = alt.X("pairs_per_s:Q", title="pairs/s", scale=alt.Scale(zero=False, padding=30), axis=alt.Axis(tickCount=6))
    else:
        x = alt.X(
            "pairs_per_s:Q", title="pairs/s", scale=alt.Scale(type="log", nice=False, padding=30), axis=_log_axis(speeds)
        )
    y = alt.Y(
        "quality:Q", title=quality.measure, scale=alt.Scale(zero=False, nice=True, padding=20), axis=alt.Axis(tickCount=5)
    )
    step = (
        alt.Chart(_data(front))
        .mark_line(interpolate="step-before", strokeDash=[5, 4], strokeWidth=1.5, color=_AUXILIARY_COLOR)
        .encode(x=x, y=y)
    )
    points = (
        alt.Chart(_data(quality.points))
        .mark_point(filled=True, size=120)
        .encode(
            x=x,
            y=y,
            color=_variant_color(names),
            opacity=alt.condition("datum.on_front", alt.value(1.0), alt.value(0.5)),
            tooltip=[
                alt.Tooltip("variant:N"),
                alt.Tooltip("pairs_per_s:Q", title="pairs/s", format=",.0f"),
                alt.Tooltip("quality:Q", title=quality.measure, format=".4f"),
                alt.Tooltip("on_front:N", title="on the Pareto front"),
            ],
        )
    )
    caption = (
        f"{quality.candidates} candidates of {quality.sequence_length} tokens. The dashed line is the Pareto front: "
        "no variant is both faster and better than one on it. Pale ones are beaten."
    )
    if quality.unknown:
        caption += f" Not placed, for want of a quality or of that measurement: {', '.join(quality.unknown)}."
    return Figure(
        key="trade-off",
        title="Speed and quality",
        caption=caption,
        chart=alt.layer(step, points).properties(width=640, height=260),
    )


def _load_curve(load: LoadCurve, records: Sequence[Record]) -> Figure:
    import altair as alt

    percentiles = [f"p{percent}" for percent in LOAD_PERCENTILES]
    slo_ms = None if load.slo is None else load.slo.latency_ms
    times = [record["ms"] for record in records] + ([] if slo_ms is None else [slo_ms])
    base = alt.Chart(_data(records)).encode(
        x=alt.X("rate:Q", title="requests/s", axis=alt.Axis(tickCount=8)),
        y=alt.Y("ms:Q", title="ms", scale=alt.Scale(type="log", nice=False), axis=_log_axis(times)),
        color=alt.Color(
            "percentile:N",
            sort=percentiles,
            scale=alt.Scale(domain=percentiles),
            legend=alt.Legend(title=None, orient="top"),
        ),
    )
    points = base.mark_point(size=50, strokeWidth=2).encode(
        shape=alt.Shape(
            "run:N",
            scale=alt.Scale(domain=[WHOLE, CUT_SHORT], range=["circle", "cross"]),
            legend=alt.Legend(title=None, orient="top") if any(record["run"] == CUT_SHORT for record in records) else None,
        ),
        tooltip=[
            alt.Tooltip("rate:Q", title="requests/s"),
            alt.Tooltip("percentile:N"),
            alt.Tooltip("ms:Q"),
            alt.Tooltip("sent:Q"),
            alt.Tooltip("unanswered:Q", title="not answered"),
            alt.Tooltip("run:N"),
        ],
    )
    layers = [base.mark_line(), points]
    caption = (
        f"{load.service}, {load.requests}. Requests arrive at random at a given rate, whether or not earlier ones were "
        "answered; each waits from when it was due."
    )
    if load.slo is not None and slo_ms is not None:
        rule = alt.Chart(_data([{"slo": slo_ms}])).mark_rule(strokeDash=[5, 4], color=_AUXILIARY_COLOR).encode(y="slo:Q")
        layers.append(rule)
        caption += f" The dashed line is what {load.slo.percentile:g} of 100 must keep, {slo_ms:g} ms"
        caption += f": {load.max_rate_per_s:.3g} requests/s do." if load.max_rate_per_s else ": no rate that was tried does."
    chart = alt.layer(*layers).properties(width=640, height=260)
    return Figure(key="load", title="Under load", caption=caption, chart=chart)


def _data(records: Sequence[Record]) -> alt.Data:
    import altair as alt

    return alt.Data(values=list(records))


def _log_axis(values: Sequence[float]) -> alt.Axis:
    import altair as alt

    return alt.Axis(values=log_ticks(values), format="~g")


def _variant_color(names: Sequence[str]) -> alt.Color:
    import altair as alt

    legend = alt.Legend(title=None, orient="top", symbolOpacity=1, symbolStrokeWidth=0) if len(names) > 1 else None
    return alt.Color("variant:N", sort=list(names), scale=alt.Scale(domain=list(names)), legend=legend)


def _by_variant(names: Sequence[str]) -> alt.Facet:
    import altair as alt

    return alt.Facet("variant:N", title=None, sort=list(names))


def _header(suffix: str) -> alt.Header:
    import altair as alt

    return alt.Header(labelExpr=f"datum.value + {suffix}")


def _panel_width(columns: int, margin: int, *, around: int = 0) -> int:
    """Width of one of some panels side by side, each with a margin for its axis."""
    return max(120, min(_WIDEST_PANEL, (PAGE_WIDTH - around) // columns - margin))
