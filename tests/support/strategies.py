"""What hypothesis draws: texts as users type them and as attackers do, and lengths of pairs."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st

from crossforge.profiles import OptimizationProfile, ShapeRange

no_deadline = settings(deadline=None, max_examples=80)
"""For every property test: a slow machine is no counterexample."""

_SNIPPETS = (
    "the city of Berlin", "where people live", "3,520,031", "##ing", "▁", "Ġ",
    "Größe", "e\N{COMBINING ACUTE ACCENT}", "日本語の文章", "مرحبا بالعالم",
    "\N{CITYSCAPE}\N{VARIATION SELECTOR-16}", "\N{WOMAN}\N{ZERO WIDTH JOINER}\N{GIRL}",
    "[SEP]", "[CLS] query", "</s>", "<s>",
    "\t\n", "\N{NO-BREAK SPACE}", "\N{ZERO WIDTH SPACE}", "\x00",
)  # fmt: skip

characters = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
texts = st.one_of(characters, st.lists(st.one_of(st.sampled_from(_SNIPPETS), characters), max_size=6).map(" ".join))
"""Any text, the empty one included."""
queries = texts.filter(lambda text: bool(text.strip()))
"""Any text that is not blank."""
words = st.lists(st.sampled_from(["the", "city", "berlin", "query", "people", "live", "xyz"]), max_size=60).map(" ".join)
"""Texts of up to a hundred tokens or so, to be cut."""
lengths = st.lists(st.integers(min_value=1, max_value=600), max_size=80)
"""Token counts of pairs."""
histograms = st.dictionaries(st.integers(1, 600), st.integers(1, 1000), min_size=1, max_size=12)
"""Token counts with their weights."""


@st.composite
def _profile_sets(draw: st.DrawFn) -> tuple[OptimizationProfile, ...]:
    def sizes(low: int, high: int) -> ShapeRange:
        return ShapeRange(min=low, opt=draw(st.integers(low, high)), max=high)

    profiles, reached = [], 0
    for edge in sorted(draw(st.sets(st.integers(1, 600), min_size=1, max_size=5))):
        start = draw(st.integers(1, reached + 1))
        profiles.append(
            OptimizationProfile(batch_size=sizes(1, draw(st.integers(1, 40))), sequence_length=sizes(start, edge))
        )
        reached = edge
    return tuple(draw(st.permutations(profiles)))


profile_sets = _profile_sets()
"""Optimization profiles that leave nothing out; they may overlap, in any order."""
