"""The model repository that ``crossforge triton`` writes, and its ``model.py`` with a stand-in for Triton's own module."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from crossforge.export.cli import app
from crossforge.export.triton import MAX_BATCH_SIZE, TritonOptions, model_config, write_model_repository
from crossforge.profiles import CrossforgeError, EngineError, InputError, IntegrityError, MachineError, Precision
from crossforge.runtime import Reranker
from crossforge.runtime.verification import verify_bundle
from support import triton_utils
from support.builders import make_machine, make_scoring, write_bundle
from support.mean_model import MeanModel
from support.text_proto import parse_text_proto
from support.triton_utils import InferenceResponse, TritonError, make_request

QUERY = "where is the city"
PASSAGES = ["berlin is the city", "a passage", "people live where"]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle")


@pytest.fixture
def load(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Writes a model and loads it as the Python backend does."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", triton_utils)
    models = []

    def load_model(**options: Any) -> Any:
        written = write_model_repository(bundle, tmp_path / "repository", TritonOptions(**options), force=True)
        spec = spec_from_file_location("model", written / "1" / "model.py")
        assert spec
        assert spec.loader
        module = module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "model", module)
        spec.loader.exec_module(module)
        config = parse_text_proto((written / "config.pbtxt").read_text())
        parameters = {entry["key"]: entry["value"] for entry in config["parameters"]}
        model = module.TritonPythonModel()
        model.initialize({"model_config": json.dumps({**config, "parameters": parameters})})
        models.append(model)
        return model

    yield load_model
    for model in models:
        model.finalize()


def scores_of(response: InferenceResponse) -> list[list[float]]:
    assert response.error is None
    scores = response.output("SCORE")
    assert scores.dtype == np.float32
    assert response.output("TRUNCATED").dtype == bool
    assert response.output("TRUNCATED").shape == scores.shape
    return scores.tolist()


# The configuration


def test_the_configuration_says_what_a_request_looks_like() -> None:
    assert parse_text_proto(model_config(TritonOptions())) == {
        "name": "reranker",
        "backend": "python",
        "max_batch_size": MAX_BATCH_SIZE,
        "input": [
            {"name": "QUERY", "data_type": "TYPE_STRING", "dims": [1]},
            {"name": "PASSAGE", "data_type": "TYPE_STRING", "dims": [-1], "allow_ragged_batch": True},
        ],
        "output": [
            {"name": "SCORE", "data_type": "TYPE_FP32", "dims": [-1]},
            {"name": "TRUNCATED", "data_type": "TYPE_BOOL", "dims": [-1]},
        ],
        "dynamic_batching": {},
        "instance_group": [{"count": 1, "kind": "KIND_MODEL"}],
        "parameters": [
            {"key": "precision", "value": {"string_value": "auto"}},
            {"key": "provider", "value": {"string_value": "auto"}},
        ],
    }


def test_options_go_into_the_configuration() -> None:
    options = TritonOptions(name="minilm", instances=2, precision="int8", provider="cpu", workers=1)
    config = parse_text_proto(model_config(options))
    assert config["name"] == "minilm"
    assert config["instance_group"] == [{"count": 2, "kind": "KIND_CPU"}]
    assert {entry["key"]: entry["value"]["string_value"] for entry in config["parameters"]} == {
        "precision": "int8",
        "provider": "cpu",
        "workers": "1",
    }


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_named_gpu_provider_needs_a_gpu(provider: str) -> None:
    config = parse_text_proto(model_config(TritonOptions(provider=provider)))
    assert config["instance_group"] == [{"count": 1, "kind": "KIND_GPU", "gpus": [0]}]


@pytest.mark.parametrize(
    "wrong",
    [{"name": "a/b"}, {"name": ".."}, {"name": ""}, {"name": 'a"'}, {"instances": 0}, {"workers": 0}, {"provider": "tpu"}],
)
def test_options_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        TritonOptions(**wrong)


# The folder


def test_the_repository_holds_a_bundle_that_still_is_one(bundle: Path, tmp_path: Path) -> None:
    model = write_model_repository(bundle, tmp_path / "repository")
    assert model == tmp_path / "repository" / "reranker"
    assert sorted(path.name for path in model.iterdir()) == ["1", "config.pbtxt"]
    assert sorted(path.name for path in (model / "1").iterdir()) == ["bundle", "model.py"]
    assert verify_bundle(model / "1" / "bundle").passed


def test_other_models_of_the_repository_stay(bundle: Path, tmp_path: Path) -> None:
    other = tmp_path / "repository" / "other"
    other.mkdir(parents=True)
    write_model_repository(bundle, tmp_path / "repository")
    assert sorted(path.name for path in other.parent.iterdir()) == ["other", "reranker"]


def test_a_model_is_replaced_only_when_asked(bundle: Path, tmp_path: Path) -> None:
    model = write_model_repository(bundle, tmp_path)
    (model / "1" / "model.py").write_text("mine")
    with pytest.raises(InputError, match="--force"):
        write_model_repository(bundle, tmp_path)
    assert (model / "1" / "model.py").read_text() == "mine"
    write_model_repository(bundle, tmp_path, force=True)
    assert "TritonPythonModel" in (model / "1" / "model.py").read_text()


def test_what_crossforge_did_not_write_is_never_replaced(bundle: Path, tmp_path: Path) -> None:
    stranger = tmp_path / "reranker" / "config.pbtxt"
    stranger.parent.mkdir()
    stranger.write_text("mine")
    with pytest.raises(InputError, match="not a model that crossforge wrote"):
        write_model_repository(bundle, tmp_path, force=True)
    assert stranger.read_text() == "mine"


def test_a_repository_inside_the_bundle_is_refused(bundle: Path) -> None:
    with pytest.raises(InputError, match="inside the bundle"):
        write_model_repository(bundle, bundle)


def test_a_damaged_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    (bundle / "tokenizer.json").write_text("{}")
    with pytest.raises(IntegrityError):
        write_model_repository(bundle, tmp_path / "repository")
    assert not (tmp_path / "repository" / "reranker").exists()


def test_a_variant_that_is_not_there_is_refused(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="auto, fp32"):
        write_model_repository(bundle, tmp_path, TritonOptions(precision="int8"))


def test_a_model_without_a_label_that_ranks_is_refused(tmp_path: Path) -> None:
    scoring = make_scoring(3, ranking_label=None)
    bundle = write_bundle(tmp_path / "bundle", model=MeanModel(labels=3), scoring=scoring)
    with pytest.raises(InputError, match="no label that ranks"):
        write_model_repository(bundle, tmp_path)


# The model


def test_one_query_with_its_passages_scores_as_the_reranker_does(load: Callable[..., Any], bundle: Path) -> None:
    [response] = load().execute([make_request([QUERY], [PASSAGES])])
    with Reranker.load(bundle) as reranker:
        assert scores_of(response) == [pytest.approx(reranker.score(QUERY, PASSAGES).tolist(), abs=1e-6)]


def test_pairs_of_several_queries_are_rows(load: Callable[..., Any], bundle: Path) -> None:
    [response] = load().execute([make_request([QUERY, "query"], [["a passage"], ["berlin"]])])
    with Reranker.load(bundle) as reranker:
        expected = reranker.relevance(reranker.score_pairs([(QUERY, "a passage"), ("query", "berlin")]).logits)
    assert scores_of(response) == [[pytest.approx(float(score), abs=1e-6)] for score in expected]


def test_merged_requests_are_scored_in_one_call_and_split(
    load: Callable[..., Any], bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, calls = load(), []
    score_pairs = model.reranker.score_pairs
    monkeypatch.setattr(model.reranker, "score_pairs", lambda pairs: calls.append(len(pairs)) or score_pairs(pairs))
    responses = model.execute(
        [make_request([QUERY], [PASSAGES]), make_request(["query"], [["berlin"]]), make_request(["query"], [[]])]
    )
    assert calls == [4]
    with Reranker.load(bundle) as reranker:
        assert scores_of(responses[0]) == [pytest.approx(reranker.score(QUERY, PASSAGES).tolist(), abs=1e-6)]
        assert scores_of(responses[1]) == [pytest.approx(reranker.score("query", ["berlin"]).tolist(), abs=1e-6)]
    assert scores_of(responses[2]) == [[]]


def test_a_pair_that_was_cut_is_reported(load: Callable[..., Any]) -> None:
    [response] = load().execute([make_request([QUERY], [["berlin", "people live where " * 50]])])
    assert response.output("TRUNCATED").tolist() == [[False, True]]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (make_request([" "], [["berlin"]]), "the query of pair 0 is empty"),
        (make_request([QUERY], [["berlin", b"\xff"]]), "PASSAGE [0, 1] is not UTF-8"),
        (make_request([QUERY], [["x" * 600_000]]), "too long"),
    ],
    ids=["blank query", "not UTF-8", "too long"],
)
def test_a_bad_request_fails_alone(load: Callable[..., Any], bad: Any, message: str) -> None:
    good = make_request([QUERY], [PASSAGES])
    first, second, third = load().execute([good, bad, good])
    assert second.error.code() == TritonError.INVALID_ARG
    assert message in second.error.message()
    assert second.output_tensors == []
    assert scores_of(first) == scores_of(third)


def test_requests_that_are_all_bad_get_their_errors(load: Callable[..., Any]) -> None:
    responses = load().execute([make_request([b"\xff"], [["berlin"]]), make_request([b"\xff"], [["berlin"]])])
    assert [response.error.code() for response in responses] == [TritonError.INVALID_ARG] * 2


def test_a_failing_engine_is_an_internal_error(load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise EngineError("the engine broke")

    model = load()
    monkeypatch.setattr(model.reranker, "score_pairs", fail)
    [response] = model.execute([make_request([QUERY], [PASSAGES])])
    assert (response.error.code(), response.error.message()) == (TritonError.INTERNAL, "the engine broke")


def test_parameters_choose_what_runs(bundle: Path, load: Callable[..., Any]) -> None:
    shutil.rmtree(bundle)
    write_bundle(bundle, precisions=(Precision.FP32, Precision.FP16))
    model = load(precision="fp16", provider="cpu", workers=3)
    assert (model.reranker.precision, model.reranker.workers) == (Precision.FP16, 3)


def test_a_server_that_misreads_arrays_does_not_load_the_model(
    load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    zeros = triton_utils.Tensor("sample", np.zeros(3, dtype=np.float32))
    monkeypatch.setattr(triton_utils.Tensor, "from_dlpack", lambda *_: zeros)
    with pytest.raises(CrossforgeError, match="numpy<2"):
        load()


def test_a_provider_that_this_machine_lacks_does_not_load(load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crossforge.runtime.opening.inspect_machine", make_machine)
    with pytest.raises(MachineError, match="cuda"):
        load(provider="cuda")


def test_finalize_closes_the_reranker(load: Callable[..., Any]) -> None:
    model = load()
    model.finalize()
    [response] = model.execute([make_request([QUERY], [PASSAGES])])
    assert "closed" in response.error.message()


# The command


def test_the_command_prints_one_json_document(bundle: Path, tmp_path: Path) -> None:
    arguments = ["triton", str(bundle), str(tmp_path / "repository"), "--name", "mine", "--instances", "2", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == {
        "model": str(tmp_path / "repository" / "mine"),
        "name": "mine",
        "instances": 2,
        "precision": "auto",
        "provider": "auto",
        "workers": None,
    }
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 2
    assert "--force" in again.stderr
    assert CliRunner().invoke(app, [*arguments, "--force"]).exit_code == 0
