"""A histogram of pair lengths with the edges of its buckets, as an SVG that reads on light and dark pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from crossforge.profiles import OptimizationProfile

WIDTH, HEIGHT = 920, 440
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 112, 56
BIN_TOKENS = 8

STYLE = """
  svg { font: 13px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }
  .page { fill: #ffffff; } .text { fill: #1f2328; } .muted { fill: #59636e; } .line { stroke: #d1d9e0; }
  .axis { stroke: #59636e; } .bar { fill: #0969da; } .edge { stroke: #bc4c00; } .bucket { fill: #bc4c00; }
  .band { fill: #bc4c00; fill-opacity: .06; }
  .title { font-size: 17px; font-weight: 600; } .strong { font-weight: 600; }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117; } .text { fill: #e6edf3; } .muted { fill: #9198a1; } .line { stroke: #2a313c; }
    .axis { stroke: #9198a1; } .bar { fill: #4493f8; } .edge { stroke: #f0883e; } .bucket { fill: #f0883e; }
    .band { fill: #f0883e; fill-opacity: .09; }
  }
"""


def draw(
    lengths: Mapping[int, int], profiles: Sequence[OptimizationProfile], *, title: str, subtitle: str, max_length: int
) -> str:
    """Bars of pairs by length, a line at each bucket's upper edge, and each bucket's range and share above it."""
    bins = [0] * -(-max_length // BIN_TOKENS)
    for length, count in lengths.items():
        bins[(length - 1) // BIN_TOKENS] += count
    step = _nice(max(bins) / 4)
    highest = step * -(-max(bins) // step)

    def x(tokens: float) -> float:
        return round(LEFT + tokens / max_length * (WIDTH - LEFT - RIGHT), 1)

    def y(pairs: float) -> float:
        return round(HEIGHT - BOTTOM - pairs / highest * (HEIGHT - TOP - BOTTOM), 1)

    parts = [
        f'<rect class="page" width="{WIDTH}" height="{HEIGHT}" rx="8"/>',
        _text(LEFT, 32, title, "text title"),
        _text(LEFT, 54, subtitle, "muted"),
    ]
    for pairs in range(0, highest + 1, step):
        parts.append(_line(x(0), y(pairs), x(max_length), y(pairs), "axis" if pairs == 0 else "line"))
        parts.append(_text(LEFT - 8, y(pairs) + 4, f"{pairs:,}", "muted", "end"))
    total = sum(lengths.values())
    for number, profile in enumerate(profiles):
        sequence = profile.sequence_length
        left, right = x(sequence.min - 1), x(sequence.max)
        if number % 2 == 0:
            parts.append(
                f'<rect class="band" x="{left}" y="{TOP}" width="{right - left:.1f}" height="{HEIGHT - TOP - BOTTOM}"/>'
            )
        share = sum(count for length, count in lengths.items() if length in sequence) / total
        middle = (left + right) / 2
        parts.append(_text(middle, TOP - 26, f"{sequence.min}–{sequence.max}", "bucket strong", "middle"))
        parts.append(_text(middle, TOP - 10, f"{share:.0%}", "text", "middle"))
    for number, pairs in enumerate(bins):
        if pairs:
            left, right = x(number * BIN_TOKENS), x((number + 1) * BIN_TOKENS)
            size = f'width="{right - left - 1:.1f}" height="{y(0) - y(pairs):.1f}"'
            parts.append(f'<rect class="bar" x="{left + 0.5:.1f}" y="{y(pairs)}" {size}/>')
    for profile in profiles:
        edge = x(profile.sequence_length.max)
        parts.append(_line(edge, TOP - 4, edge, y(0), "edge", 'stroke-width="2" stroke-dasharray="5 3"'))
    parts += [_text(x(tokens), y(0) + 18, str(tokens), "muted", "middle") for tokens in range(0, max_length + 1, 64)]
    parts.append(_text(x(max_length / 2), HEIGHT - 14, "tokens of a pair", "text", "middle"))
    parts.append(
        _text(0, 0, f"pairs a bin of {BIN_TOKENS} tokens", "text", "middle", f"translate(18 {y(highest / 2)}) rotate(-90)")
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
    return "\n".join([head, f"<style>{STYLE}</style>", *parts, "</svg>", ""])


def _nice(value: float) -> int:
    """The smallest 1, 2 or 5 times a power of ten that is not below a value."""
    power = 1
    while True:
        for factor in (1, 2, 5):
            if factor * power >= value:
                return factor * power
        power *= 10


def _text(x: float, y: float, text: str, style: str, anchor: str = "start", transform: str = "") -> str:
    place = f'transform="{transform}"' if transform else f'x="{x:.1f}" y="{y:.1f}"'
    return f'<text class="{style}" {place} text-anchor="{anchor}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, style: str, more: str = "") -> str:
    return f'<line class="{style}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" {more}/>'.replace(" />", "/>")
