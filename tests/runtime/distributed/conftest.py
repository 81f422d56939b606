from __future__ import annotations

from pathlib import Path

import pytest

from support.builders import write_bundle


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose model is four numbers a token."""
    return write_bundle(tmp_path_factory.mktemp("bulk") / "bundle")
