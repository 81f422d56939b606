"""Every argument of the original is there, and on the page."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from sentence_transformers import CrossEncoder as Original

from crossforge.runtime import CrossEncoder
from support.cross_encoders import arguments_of

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "sentence-transformers.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["__init__", "predict", "rank"])
def test_every_argument_of_the_original_is_there_in_its_place_with_its_default(name: str) -> None:
    ours, original = arguments_of(getattr(CrossEncoder, name)), arguments_of(getattr(Original, name))
    original = {n: p for n, p in original.items() if p.kind is not inspect.Parameter.VAR_KEYWORD}
    assert list(ours)[: len(original)] == list(original)
    for argument, parameter in original.items():
        assert (ours[argument].default, ours[argument].kind) == (parameter.default, parameter.kind), argument


def test_the_page_has_a_row_for_every_argument() -> None:
    rows = "\n".join(line.split("|")[1] for line in PAGE.splitlines() if line.startswith("|"))
    named = set(re.findall(r"`(\w+)`", rows))
    arguments = {n for name in ("__init__", "predict", "rank") for n in arguments_of(getattr(CrossEncoder, name))}
    assert arguments - {"self"} <= named
