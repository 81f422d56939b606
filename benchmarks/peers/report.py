"""The table and the plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from crossforge.export.latency_page.theme import THEMES
from peers.summary import Row, Spread


def markdown(rows: Sequence[Row], missing: Mapping[str, str], candidates: Sequence[int]) -> str:
    """One table, fastest first.

    Args:
        rows: The contenders that answered.
        missing: Why the others did not, by name.
        candidates: Sizes of the requests whose latency was measured.
    """
    has_long = any(row.long_pairs_per_s for row in rows)
    head = ["", "pairs/s (quartiles)", "ratio (quartiles)"]
    head += ["long pairs/s", "ratio"] if has_long else []
    head += [f"top-{count} p50 / p99 ms" for count in candidates]
    head += ["Kendall tau", "nDCG@10", "gate on these queries", "of the int8 ceiling"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in sorted(rows, key=lambda row: -row.pairs_per_s.median):
        cells = [f"**{row.name}**" if row.is_ours else row.name, _spread(row.pairs_per_s, ".0f"), _spread(row.ratio, ".2f")]
        if has_long:
            cells += [
                f"{row.long_pairs_per_s.median:.1f}" if row.long_pairs_per_s else "",
                f"{row.long_ratio.median:.2f}" if row.long_ratio else "",
            ]
        for count in candidates:
            p50, p99, _ = row.latency_ms.get(count, (None, None, 0))
            cells.append("" if p50 is None else f"{p50:.0f} / {p99:.0f}")
        cells += [
            _figure(row.kendall_tau),
            _figure(row.ndcg_at_10),
            {True: "passes", False: "fails", None: ""}[row.passes_gate],
            f"{row.ceiling_share.median:.0%}" if row.ceiling_share else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"| {name} | {reason} |{' |' * (len(head) - 2)}" for name, reason in missing.items()]
    return "\n".join(lines)


def draw(rows: Sequence[Row], path: Path, *, title: str, subtitle: str) -> None:
    """Bars of the ratio to the reference with their quartiles, and what each does to the ranking, as a PNG."""
    import altair as alt

    placed = [row for row in rows if row.ratio is not None]
    records = [
        {
            "name": row.name,
            "ratio": row.ratio.median,
            "low": row.ratio.low,
            "high": row.ratio.high,
            "whose": "crossforge" if row.is_ours else "others",
            "note": _note(row),
        }
        for row in placed
        if row.ratio is not None
    ]
    order = [record["name"] for record in sorted(records, key=lambda record: -float(str(record["ratio"])))]
    base = alt.Chart(alt.Data(values=records)).encode(
        y=alt.Y("name:N", sort=order, title=None, axis=alt.Axis(labelLimit=320, ticks=False, domain=False))
    )
    bars = base.mark_bar(height=16, cornerRadiusEnd=2).encode(
        x=alt.X(
            "ratio:Q",
            title="times as fast as sentence-transformers fp32 (median over rounds; line: quartiles)",
            scale=alt.Scale(domain=[0, max(record["high"] for record in records) * 1.35]),
        ),
        color=alt.Color(
            "whose:N",
            title=None,
            scale=alt.Scale(domain=["crossforge", "others"], range=["#3f7fd0", "#b3bac4"]),
            legend=alt.Legend(orient="top"),
        ),
    )
    spread = base.mark_rule(strokeWidth=1.5, color="#1c2024").encode(x="low:Q", x2="high:Q")
    notes = base.mark_text(align="left", dx=8, fontSize=11).encode(x="high:Q", text="note:N")
    chart = (
        alt.layer(bars, spread, notes)
        .properties(width=620, height=24 * len(records), title=alt.TitleParams(title, subtitle=subtitle, anchor="start"))
        .configure(**THEMES["light"])
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    chart.save(str(path), ppi=144)


def _note(row: Row) -> str:
    parts = [f"{row.ratio.median:.2f}" if row.ratio else ""]
    if row.kendall_tau is not None:
        parts.append(f"tau {row.kendall_tau:.3f}")
    return ", ".join(parts)


def _spread(spread: Spread | None, form: str) -> str:
    return "" if spread is None else f"{spread.median:{form}} ({spread.low:{form}}-{spread.high:{form}})"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
