"""Fixtures that every test may use."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.sharing import make_once

if TYPE_CHECKING:
    from support.fake_hub import FakeHub

os.environ.pop("COLUMNS", None)  # pytest-xdist sets it in its workers, and a rich console made meanwhile keeps that width
if "PYTEST_XDIST_WORKER" in os.environ:
    # There are as many processes as cores: a second thread of PyTorch's would spin where another process computes.
    os.environ["OMP_NUM_THREADS"] = "1"

LONGEST_FIRST = (
    "export/test_cli.py",  # makes the demo bundle, which the others do without for a while
    "distributed/test_on_ray.py",
    "export/test_architectures.py",
    "export/test_evaluation.py",
    "export/test_native.py",
    "export/test_passes_cls_only.py",
    "runtime/test_native_kernels.py",
    "export/test_exporter.py",
    "export/test_trimming.py",
    "export/test_latency_page.py",
    "export/test_passes_properties.py",
    "export/test_passes_fuse_cuda.py",
    "export/test_opens_elsewhere.py",
    "serving/test_load.py",
    "serving/test_server.py",
    "profiling/test_profile_cli.py",
)
"""Files of tests by the processor time that they take; `make test` begins with them."""

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
"""Real ranking data, which is not part of the repository."""


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real ranking data; skips where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no ranking data at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``crossforge demo --json`` made of the embedded model, once a run: its bundle, and what it printed."""
    from support.demo import run_demo

    return make_once(tmp_path_factory, "demo-run", run_demo)


@pytest.fixture(scope="session")
def demo_bundle(demo_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of it, as ``crossforge export demo`` writes it: without what only some processors run."""
    from crossforge.profiles import Precision
    from support.demo import BUNDLE, copy_without

    return make_once(
        tmp_path_factory, "demo-bundle", lambda path: copy_without(demo_run / BUNDLE, path, Precision.INT8_NATIVE)
    )


@pytest.fixture(scope="session")
def demo_embedder_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the embedded model's base, a bi-encoder, exported once a run; fp32 alone, judged on one query."""
    from crossforge.export.exporter import ExportOptions, export_bundle
    from crossforge.export.pairs import berlin
    from crossforge.profiles import Precision

    def make(bundle: Path) -> None:
        record, run = berlin(), tmp_path_factory.mktemp("demo-embedder") / "run.jsonl"
        passages = [{"id": passage.id, "text": passage.text} for passage in record.passages]
        run.write_text(json.dumps({"qid": record.qid, "query": record.query, "passages": passages}), encoding="utf-8")
        export_bundle("demo-embedder", bundle, ExportOptions(precisions=(Precision.FP32,), verification=run))

    return make_once(tmp_path_factory, "demo-embedder-bundle", make)


@pytest.fixture(scope="session")
def native_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The native engine, compiled once a session; skips where there is no compiler."""
    from crossforge.runtime.sessions.native.library import build_library, library_path

    if shutil.which("g++") is None:
        pytest.skip("there is no g++ to compile the native engine with")
    folder = make_once(tmp_path_factory, "cache", lambda path: build_library(path / "crossforge" / "native"))
    return library_path(folder / "crossforge" / "native")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A model hub on the loopback; huggingface_hub of this process and its children asks it, with an empty cache."""
    from huggingface_hub import constants, file_download

    from support.fake_hub import TOKEN, fake_hub

    with fake_hub() as server:
        for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING"))]:
            monkeypatch.delenv(name)
        cache = tmp_path / "hub-cache"
        settings = {
            "HF_ENDPOINT": server.url,
            "HF_HUB_CACHE": str(cache),
            "HF_HOME": str(tmp_path / "hub-home"),
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        # The environment is for children; this process may have imported huggingface_hub before.
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        for module in (constants, file_download):  # which of them has it changed with version 1
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        yield server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first: one that began last would leave the other processes nothing to do."""
    places = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(f"{item.path.parent.name}/{item.path.name}", len(places)))
