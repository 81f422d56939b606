"""One service for every test that asks it nothing unusual."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.serving import RunningService, fake_service


@pytest.fixture(scope="session")
def service() -> Iterator[RunningService]:
    """A service of the model ``tiny``, which reads 64 tokens, 16 of them the query's, and is cut on the right."""
    with fake_service() as running:
        yield running
