"""Models that the drop-in is compared on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.cross_encoders import Both, open_both


@pytest.fixture(scope="package")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """A model with one label."""
    both = open_both(tmp_path_factory.mktemp("one"))
    yield both
    both.ours.close()


@pytest.fixture(scope="package")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """A model with three labels, whose checkpoint names another activation than sentence-transformers' default."""
    both = open_both(tmp_path_factory.mktemp("three"), labels=3, activation="torch.nn.modules.activation.Sigmoid")
    yield both
    both.ours.close()


@pytest.fixture(params=["one", "three"])
def both(request: pytest.FixtureRequest) -> Both:
    loaded: Both = request.getfixturevalue(request.param)
    return loaded
