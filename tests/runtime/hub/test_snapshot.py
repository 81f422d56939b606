"""Bundles that are loaded from a hub: the real huggingface_hub against a service on the loopback."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants

from crossforge.profiles import (
    BundleNotFoundError,
    CrossforgeError,
    HubAccessError,
    HubUnavailableError,
    InputError,
    IntegrityError,
    MissingPackageError,
    Precision,
    StaleRevisionWarning,
)
from crossforge.runtime import CrossEncoder, Reranker
from crossforge.runtime.bundle import Bundle, refuse_hub
from crossforge.runtime.verification import verify_bundle
from support.builders import write_bundle
from support.fake_hub import FakeHub, files_of, publish
from support.mean_model import MeanModel

QUERY = "where is the city"
PASSAGES = ["berlin", "people live in berlin"]
ONNX = "onnx/model.onnx"
LOAD = """
import sys
from crossforge.runtime import Reranker
with Reranker.load(sys.argv[1], provider="cpu") as reranker:
    print(reranker.score("where is the city", ["berlin", "people live in berlin"]).tolist())
"""
ROOTS = os.pathsep.join(str(Path(__file__).resolve().parents[3] / name) for name in ("export", "runtime", "profiles"))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle", precisions=(Precision.FP32, Precision.INT8))


def scores(bundle: str | Path, **options: str) -> list[float]:
    with Reranker.load(bundle, provider="cpu", **options) as reranker:
        return [float(score) for score in reranker.score(QUERY, PASSAGES)]


def unplug(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set HF_HUB_OFFLINE as huggingface_hub does, and let no request be answered."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.status = 500
    hub.asked()


def test_a_bundle_on_the_hub_scores_as_in_its_folder(hub: FakeHub, bundle: Path) -> None:
    publish(hub, bundle)
    assert scores("org/name") == scores(bundle)


def test_weights_beside_the_graph_are_found_behind_the_links_of_the_cache(hub: FakeHub, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", external_data=True)
    publish(hub, bundle)
    assert scores("org/name") == scores(bundle)


def test_only_the_files_of_the_variant_that_runs_are_downloaded(hub: FakeHub, bundle: Path) -> None:
    publish(hub, bundle)
    scores("org/name", precision="fp32")

    assert sorted(files_of(Bundle.open("org/name").path)) == ["crossforge.json", ONNX, "tokenizer.json"]


def test_a_second_load_asks_once_and_downloads_nothing(hub: FakeHub, bundle: Path) -> None:
    publish(hub, bundle)
    scores("org/name")
    hub.asked()
    scores("org/name")
    assert hub.asked() == ["GET /api/models/org/name/revision/main"]


def test_a_commit_that_is_cached_is_loaded_without_a_request(hub: FakeHub, bundle: Path) -> None:
    commit = publish(hub, bundle).branches["main"]
    expected = scores("org/name", revision=commit)
    hub.asked()

    assert scores(f"org/name@{commit}") == expected
    assert hub.asked() == []


def test_offline_what_was_loaded_is_loaded_again_in_a_new_process(hub: FakeHub, bundle: Path) -> None:
    publish(hub, bundle)
    expected = scores("org/name")
    hub.asked()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ROOTS}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, "org/name"], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(expected)
    assert hub.asked() == []


def test_a_newer_commit_of_main_is_loaded(hub: FakeHub, bundle: Path, tmp_path: Path) -> None:
    repository = publish(hub, bundle)
    first, before = repository.branches["main"], scores("org/name")
    newer = write_bundle(tmp_path / "newer", model=MeanModel(seed=7))
    repository.commit("main", files_of(newer))

    assert scores("org/name") == scores(newer) != before
    assert scores(f"org/name@{first}") == before


def test_offline_main_is_the_commit_that_was_last_asked_for(
    hub: FakeHub, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = publish(hub, bundle)
    before = scores("org/name")
    repository.commit("main", files_of(write_bundle(tmp_path / "newer", model=MeanModel(seed=7))))
    unplug(hub, monkeypatch)

    assert scores("org/name") == before
    assert hub.asked() == []


@pytest.mark.parametrize("status", [429, 503])
def test_a_hub_that_does_not_answer_is_said_and_the_cache_is_taken(hub: FakeHub, bundle: Path, status: int) -> None:
    commit = publish(hub, bundle).branches["main"]
    before = scores("org/name")
    hub.status = status

    with pytest.warns(StaleRevisionWarning, match=rf"HTTP {status}.*org/name is taken from its cache.*{commit[:12]}"):
        assert scores("org/name") == before


@pytest.mark.usefixtures("hub")
def test_a_hub_that_cannot_be_reached_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(HubUnavailableError, match=r"no folder org/name, and the hub does not answer.*local folder"):
        Reranker.load("org/name")


def test_offline_what_was_never_loaded_cannot_be(hub: FakeHub, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(hub, bundle)
    unplug(hub, monkeypatch)
    with pytest.raises(HubUnavailableError, match=r"no folder org/name.*HF_HUB_OFFLINE.*where there is a network"):
        Reranker.load("org/name")


def test_offline_a_variant_that_was_never_loaded_is_named(
    hub: FakeHub, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(hub, bundle)
    scores("org/name", precision="fp32")
    unplug(hub, monkeypatch)
    with pytest.raises(HubUnavailableError, match=r"without onnx/model_int8\.onnx"):
        Reranker.load("org/name", precision="int8")


def test_a_download_that_was_killed_is_not_taken_for_whole(hub: FakeHub, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    publish(hub, bundle)
    hub.stall = hashlib.sha256((bundle / ONNX).read_bytes()).hexdigest()  # a large file is downloaded by its digest
    child = subprocess.Popen(
        [sys.executable, "-c", LOAD, "org/name"], env={**os.environ, "PYTHONPATH": ROOTS}, stdout=subprocess.PIPE
    )
    try:
        assert hub.stalled.wait(30), "the download did not begin"
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    hub.stall = None
    hub.released.set()
    cached = Path(constants.HF_HUB_CACHE)

    assert not list(cached.glob(f"*/snapshots/*/{ONNX}"))
    assert scores("org/name") == scores(bundle)


def test_a_file_with_another_digest_is_not_run(hub: FakeHub, bundle: Path) -> None:
    changed = files_of(bundle) | {ONNX: (bundle / ONNX).read_bytes()[:-1] + b"!"}
    hub.add("org/name", changed)
    with pytest.raises(IntegrityError, match=r"onnx/model\.onnx was altered.*Remove .*models--org--name"):
        Reranker.load("org/name", precision="fp32")


def test_a_file_that_the_repository_lacks_is_named(hub: FakeHub, bundle: Path) -> None:
    files = files_of(bundle)
    del files[ONNX]
    hub.add("org/name", files)
    with pytest.raises(IntegrityError, match=r"cannot download onnx/model\.onnx of org/name: the repository lacks"):
        Reranker.load("org/name", precision="fp32")


def test_a_repository_without_a_manifest_is_no_bundle(hub: FakeHub) -> None:
    hub.add("org/name", {"config.json": b"{}"})
    with pytest.raises(BundleNotFoundError, match=r"not a bundle.*crossforge export org/name"):
        Reranker.load("org/name")


@pytest.mark.usefixtures("hub")
def test_a_name_that_is_neither_here_nor_there_is_said_to_be_neither() -> None:
    with pytest.raises(BundleNotFoundError, match=r"there is no folder org/name, and the hub has no model org/name"):
        Reranker.load("org/name")


def test_a_revision_that_is_not_there_is_named(hub: FakeHub, bundle: Path) -> None:
    publish(hub, bundle)
    with pytest.raises(BundleNotFoundError, match="org/name has no such revision; got v9"):
        Reranker.load("org/name@v9")


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"private": True}, BundleNotFoundError, "If it is private: Log in"),
        ({"gated": True}, HubAccessError, "gives access on request; got HTTP 401. Ask for it on the model's page"),
    ],
)
def test_what_needs_a_token_says_how_to_get_in(
    hub: FakeHub,
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, bool],
    kind: type[CrossforgeError],
    message: str,
) -> None:
    publish(hub, bundle, **options)
    assert scores("org/name", precision="fp32")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(kind, match=message):
        Reranker.load("org/name", precision="int8")


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [(401, HubAccessError, "no token is set, or it is not valid"), (403, HubAccessError, "does not allow it")],
)
def test_a_refusal_is_no_reason_to_take_the_cache(
    hub: FakeHub, bundle: Path, status: int, kind: type[CrossforgeError], message: str
) -> None:
    publish(hub, bundle)
    scores("org/name")
    hub.status = status
    with pytest.raises(kind, match=message):
        Reranker.load("org/name")


def test_without_huggingface_hub_the_pip_line_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingPackageError, match=r'no folder org/name.*pip install "crossforge\[hub\]"'):
        Reranker.load("org/name")


def test_a_folder_has_no_revision(bundle: Path) -> None:
    with pytest.raises(InputError, match="a folder has no revisions"):
        Reranker.load(bundle, revision="v1")
    with pytest.raises(InputError, match="open already"):
        Reranker.load(Bundle.open(bundle), revision="v1")


def test_a_folder_of_that_name_wins(hub: FakeHub, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(hub, bundle)
    local = write_bundle(tmp_path / "org" / "name", model=MeanModel(seed=7))
    monkeypatch.chdir(tmp_path)

    assert scores("org/name") == scores(local) != scores(bundle)
    assert hub.asked() == []


def test_verification_downloads_all_and_follows_the_links(hub: FakeHub, bundle: Path) -> None:
    publish(hub, bundle)
    assert verify_bundle("org/name").problems == ()
    (blob,) = (path for path in Path(constants.HF_HUB_CACHE).glob("*/snapshots/*/tokenizer.json"))
    assert blob.is_symlink()
    before = sorted(path.stat().st_mtime_ns for path in Path(constants.HF_HUB_CACHE).rglob("*"))
    verify_bundle("org/name")
    assert sorted(path.stat().st_mtime_ns for path in Path(constants.HF_HUB_CACHE).rglob("*")) == before


def test_the_drop_in_takes_revision_cache_and_offline(hub: FakeHub, bundle: Path, tmp_path: Path) -> None:
    publish(hub, bundle).commit("v1", files_of(bundle))
    options = {"revision": "v1", "cache_folder": str(tmp_path / "elsewhere")}
    pairs = [(QUERY, passage) for passage in PASSAGES]
    with CrossEncoder("org/name", **options) as model:
        expected = model.predict(pairs)
    hub.asked()
    with CrossEncoder("org/name", local_files_only=True, **options) as model:
        np.testing.assert_array_equal(model.predict(pairs), expected)

    assert hub.asked() == []
    assert not Path(constants.HF_HUB_CACHE).exists()


def test_what_is_to_be_changed_must_be_a_folder(hub: FakeHub, bundle: Path) -> None:
    publish(hub, bundle)
    with pytest.raises(InputError, match=r"build changes a bundle.*hf download org/name --local-dir"):
        refuse_hub("org/name", "build")
    with pytest.raises(InputError, match=r"write into the hub's cache"):
        refuse_hub(Bundle.open("org/name").path, "build")
    refuse_hub(bundle, "build")
