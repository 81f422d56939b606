"""Colours of the figures in light and in dark. Those of the page itself stand in its style sheet."""

from __future__ import annotations

from typing import Any

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif"


def _theme(*, text: str, faint: str, grid: str, background: str | None) -> dict[str, Any]:
    return {
        "background": background,
        "font": _FONT,
        "view": {"stroke": grid},
        "axis": {
            "labelColor": faint,
            "titleColor": faint,
            "titleFontWeight": "normal",
            "titleFontSize": 12,
            "labelFontSize": 11,
            "gridColor": grid,
            "domainColor": faint,
            "tickColor": faint,
        },
        "legend": {
            "labelColor": text,
            "titleColor": faint,
            "titleFontWeight": "normal",
            "labelFontSize": 12,
            "titleFontSize": 12,
        },
        "header": {"labelColor": text, "titleColor": text, "labelFontSize": 12, "labelFontWeight": "bold"},
        "title": {"color": text, "subtitleColor": faint, "fontSize": 16, "subtitleFontSize": 12},
        "text": {"color": text},
        "range": {"category": {"scheme": "observable10"}},
    }


THEMES: dict[str, dict[str, Any]] = {
    "light": _theme(text="#1c2024", faint="#5c6570", grid="#e3e6ea", background="#ffffff"),
    "dark": _theme(text="#e8eaed", faint="#a3abb5", grid="#33393f", background="#16191d"),
}
"""Vega-Lite configurations by the names that ``prefers-color-scheme`` uses."""
