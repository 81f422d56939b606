"""``docs/scale.md`` is computed from figures that were measured."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAIRS_A_DAY, DAY_S, BUSY = 1e9, 86_400, 0.6
ROWS = re.findall(
    r"^\| ([\w -]+) \| [\w ]+ \| (\d+) \| (\d+) \| (\d+) \| \[\w+\.md\]\((\w+\.md)\) \|$",
    (DOCS / "scale.md").read_text(encoding="utf-8"),
    flags=re.MULTILINE,
)


def test_the_table_is_read() -> None:
    assert len(ROWS) >= 5


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]} {row[1]}")
def test_machines_follow_from_a_rate_that_the_page_it_names_has(row: tuple[str, ...]) -> None:
    name, rate, all_day, part_of_it, source = row
    machines = PAIRS_A_DAY / DAY_S / int(rate)

    assert (int(all_day), int(part_of_it)) == (math.ceil(machines), math.ceil(machines / BUSY))
    row_of_it = rf"^\| \**{name}(?: \(native\))?\** \| (\d+) "
    measured = re.findall(row_of_it, (DOCS / source).read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert rate in measured, f"docs/{source} says {measured} now: compute the row again"
