from __future__ import annotations

import threading
from pathlib import Path

import pytest

from crossforge.profiles import BundleNotFoundError, InputError, OverloadedError, Precision, RequestTooLargeError
from crossforge.runtime.serving.errors import Dialect, Kind, problem_of, retry_after_s
from crossforge.runtime.serving.models import ModelSpec, ServedModel, load_models
from crossforge.runtime.serving.settings import ServiceSettings, read_api_keys
from support.builders import fake_reranker, make_manifest, make_scoring, write_bundle
from support.fake_hub import FakeHub, files_of, publish
from support.mean_model import MeanModel
from support.serving import running


@pytest.mark.parametrize(
    ("text", "name", "path"),
    [("./folder/bundle", "bundle", "folder/bundle"), ("a=folder/b=c", "a", "folder/b=c"), ("m=/b", "m", "/b")],
)
def test_a_model_is_called_as_it_is_told_or_as_its_folder(text: str, name: str, path: str) -> None:
    assert ModelSpec.parse(text) == ModelSpec(name=name, bundle=Path(path))


@pytest.mark.parametrize(
    ("text", "name", "bundle"),
    [("org/reranker", "reranker", "org/reranker"), ("org/r@v1", "r", "org/r@v1"), ("m=org/r@v1", "m", "org/r@v1")],
)
def test_a_model_on_the_hub_is_called_as_its_repository(text: str, name: str, bundle: str) -> None:
    assert ModelSpec.parse(text) == ModelSpec(name=name, bundle=bundle)


def test_a_variant_that_is_loaded_later_is_of_the_same_commit(hub: FakeHub, tmp_path: Path) -> None:
    both = (Precision.FP32, Precision.INT8)
    repository = publish(hub, write_bundle(tmp_path / "first", precisions=both))
    model = load_models([ModelSpec.parse("org/name")], ServiceSettings(), provider="cpu", precision="int8")["name"]
    repository.commit("main", files_of(write_bundle(tmp_path / "newer", model=MeanModel(seed=7), precisions=both)))
    try:
        assert model.open_variant is not None
        with model.open_variant(Precision.FP32) as other:
            assert other.score("city", ["berlin"]) == pytest.approx(model.reranker.score("city", ["berlin"]))
    finally:
        model.close()


@pytest.mark.parametrize("text", ["", "=bundle", "name="])
def test_a_model_without_a_name_or_a_bundle_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="NAME=BUNDLE"):
        ModelSpec.parse(text)


def test_a_bundle_of_two_names_is_loaded_once_and_answers_to_both(tmp_path: Path) -> None:
    first, second = write_bundle(tmp_path / "first"), write_bundle(tmp_path / "second")
    settings = ServiceSettings(port=0)
    specs = [ModelSpec.parse(text) for text in (str(first), f"alias={first}", f"other={second}")]
    models = load_models(specs, settings)
    with running(models, settings) as service:
        for name in ("first", "alias", "other"):
            answer = service.post("/v2/rerank", {"model": name, "query": "city", "documents": ["berlin"]})
            assert answer.json()["model"] == name
        assert service.get("/info").json()["model_id"] == "first"

    assert models["first"] is models["alias"]
    assert models["first"] is not models["other"]


def test_two_models_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a name of its own"):
        load_models([ModelSpec(name="a", bundle=tmp_path), ModelSpec(name="a", bundle=tmp_path / "b")], ServiceSettings())


def test_what_was_loaded_is_closed_when_another_bundle_fails(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "tiny")
    before = set(threading.enumerate())
    with pytest.raises(BundleNotFoundError):
        load_models([ModelSpec.parse(str(bundle)), ModelSpec.parse(str(tmp_path / "none"))], ServiceSettings())

    assert set(threading.enumerate()) <= before


def test_a_model_that_cannot_rank_is_refused() -> None:
    manifest = make_manifest(scoring=make_scoring(3, ranking_label=None))
    with fake_reranker(manifest=manifest) as reranker, pytest.raises(InputError, match="no label that ranks"):
        ServedModel("nli", reranker)


@pytest.mark.parametrize(("wait_s", "seconds"), [(None, 1), (0.0, 1), (0.2, 1), (1.0, 1), (1.01, 2), (61.5, 62)])
def test_retry_after_is_rounded_up_and_never_0(wait_s: float | None, seconds: int) -> None:
    assert retry_after_s(wait_s) == seconds
    assert problem_of(OverloadedError("full", wait_s=wait_s)).all_headers() == {"retry-after": str(seconds)}


def test_a_request_larger_than_the_queue_is_too_large_not_invalid() -> None:
    problem = problem_of(RequestTooLargeError("too large"))

    assert (problem.kind, problem.status(Dialect.TEI)) == (Kind.TOO_LARGE, 413)


def test_keys_are_read_one_a_line(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# ours\nfirst\n\n  second  \n", encoding="utf-8")

    assert read_api_keys(path) == ("first", "second")


@pytest.mark.parametrize("content", ["", "# nothing\n"])
def test_a_file_without_keys_does_not_open_the_service(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys"
    path.write_text(content, encoding="utf-8")

    with pytest.raises(InputError, match="no API key"):
        read_api_keys(path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"port": 70_000}, "port"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"timeout_s": float("nan")}, "timeout_s"),
        ({"max_text_chars": 1_000_000}, "max_text_chars"),
        ({"api_keys": ("",)}, "API key"),
        ({"api_keys": ("schlüssel",)}, "API key"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ServiceSettings(**wrong)  # type: ignore[arg-type]
