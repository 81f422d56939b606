"""What the int8 pass is for: a pair scores the same alone and in any company."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from crossforge.export.pairs import calibration_pairs, flatten
from crossforge.runtime import Reranker

PAIRS = flatten(calibration_pairs())


@pytest.fixture(scope="module", params=["tiny_bundle", "demo_bundle"])
def alone(request: pytest.FixtureRequest) -> Iterator[tuple[Reranker, NDArray[np.float32]]]:
    """A reranker on int8, and the logits of each pair scored alone."""
    bundle: Path = request.getfixturevalue(request.param)
    with Reranker.load(bundle, provider="cpu", precision="int8") as reranker:
        yield reranker, np.concatenate([reranker.score_pairs([pair]).logits for pair in PAIRS])


@settings(max_examples=25, deadline=None)
@given(
    company=st.lists(st.integers(0, len(PAIRS) - 1), min_size=1, max_size=16),
    budget_tokens=st.sampled_from([1, 600, 100_000]),
)
def test_a_pairs_logits_do_not_depend_on_its_batch(
    alone: tuple[Reranker, NDArray[np.float32]], company: list[int], budget_tokens: int
) -> None:
    reranker, logits = alone
    reranker.budget_tokens = budget_tokens
    together = reranker.score_pairs([PAIRS[i] for i in company]).logits
    np.testing.assert_allclose(together, logits[company], rtol=0, atol=1e-4)
