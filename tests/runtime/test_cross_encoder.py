"""The drop-in beside ``sentence_transformers.CrossEncoder``, argument by argument."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder as Original

from crossforge.export.demo import materialize_demo_model
from crossforge.export.exporter import ExportOptions, export_bundle
from crossforge.export.gates import OPEN_GATE
from crossforge.export.pairs import berlin
from crossforge.export.source import SourceOptions
from crossforge.profiles import BundleNotFoundError, InputError, MachineError, Precision, TruncationWarning
from crossforge.runtime import Activation, CrossEncoder
from support.builders import write_bundle
from support.tiny_models import save_tiny_model

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "sentence-transformers.md").read_text(encoding="utf-8")
QUERY = "How many people live in Berlin?"
DOCUMENTS = [
    "Berlin has a population of 3,520,031 registered inhabitants.",
    "New York City is famous for the Metropolitan Museum of Art.",
    "",
    "Water boils at 100 degrees Celsius. " * 3,
    "New York City is famous for the Metropolitan Museum of Art.",
]
PAIRS = [(QUERY, document) for document in DOCUMENTS] + [("Why does bread rise?", "Yeast turns sugar into gas.")]
LONG_PAIR = (QUERY, "the river Spree flows through the city of Berlin and " * 40)
CLOSE = {"rtol": 0, "atol": 2e-5}
"""Between PyTorch and ONNX Runtime in float32."""


@dataclass(frozen=True)
class Both:
    """One checkpoint in sentence-transformers, and its bundle in crossforge."""

    checkpoint: Path
    bundle: Path
    original: Original
    ours: CrossEncoder


def open_both(folder: Path, **model: Any) -> Both:
    checkpoint = save_tiny_model(folder / "checkpoint", **model)
    options = ExportOptions(source=SourceOptions(), precisions=(Precision.FP32,), gates={Precision.FP32: OPEN_GATE})
    export_bundle(str(checkpoint), folder / "bundle", options)
    original = Original(str(checkpoint), device="cpu")
    return Both(checkpoint, folder / "bundle", original, CrossEncoder(str(folder / "bundle"), device="cpu"))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """A model with one label."""
    both = open_both(tmp_path_factory.mktemp("one"))
    yield both
    both.ours.close()


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """A model with three labels, whose checkpoint names another activation than sentence-transformers' default."""
    both = open_both(tmp_path_factory.mktemp("three"), labels=3, activation="torch.nn.modules.activation.Sigmoid")
    yield both
    both.ours.close()


@pytest.fixture(params=["one", "three"])
def both(request: pytest.FixtureRequest) -> Both:
    loaded: Both = request.getfixturevalue(request.param)
    return loaded


def assert_same(ours: Any, original: Any) -> None:
    """The same type, shape, dtype and, to a hair, values."""
    assert type(ours) is type(original)
    if isinstance(original, list):
        assert len(ours) == len(original)
        for one, other in zip(ours, original, strict=True):
            assert_same(one, other)
        return
    assert (ours.shape, ours.dtype) == (original.shape, original.dtype)
    np.testing.assert_allclose(np.asarray(ours), np.asarray(original), **CLOSE)


def arguments_of(function: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)


# --- the signatures


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


# --- predict: inputs and what comes back


@pytest.mark.parametrize(
    "inputs",
    [
        PAIRS,
        [list(pair) for pair in PAIRS],
        tuple(PAIRS),
        np.array(PAIRS),
        np.array(PAIRS, dtype=object),
        PAIRS[0],
        list(PAIRS[0]),
        np.array(PAIRS[0]),
        PAIRS[:1],
        [],
        np.array([], dtype=object),
    ],
    ids=[
        "list of tuples",
        "list of lists",
        "tuple",
        "array",
        "array of objects",
        "one pair",
        "one pair as a list",
        "one pair as an array",
        "a list of one pair",
        "no pairs",
        "an empty array",
    ],
)
@pytest.mark.parametrize(
    "returns",
    [{}, {"convert_to_tensor": True}, {"convert_to_numpy": False}, {"convert_to_numpy": False, "convert_to_tensor": True}],
    ids=["numpy", "tensor", "list", "tensor wins"],
)
def test_predict_takes_and_returns_what_the_original_does(both: Both, inputs: Any, returns: dict[str, bool]) -> None:
    assert_same(both.ours.predict(inputs, **returns), both.original.predict(inputs, **returns))


@pytest.mark.parametrize(
    "inputs", ["a text", 3, None, [("a query", "a passage", "a third")], [{"text": "a"}], {"text": "a"}]
)
def test_inputs_that_are_not_pairs_of_texts_are_refused(one: Both, inputs: Any) -> None:
    with pytest.raises(InputError, match="pair"):
        one.ours.predict(inputs)
    with pytest.raises(InputError, match="passage 0 is not a string; got int 3"):
        one.ours.predict([("a query", 3)])


def test_a_blank_query_is_refused_where_the_original_scores_it(one: Both) -> None:
    assert one.original.predict([("", "a passage")]).shape == (1,)
    with pytest.raises(InputError, match="the query of pair 0 is empty"):
        one.ours.predict([("", "a passage")])


# --- predict: activation


@pytest.mark.parametrize("softmax", [False, True], ids=["", "softmax"])
@pytest.mark.parametrize(
    "activation",
    [None, torch.nn.Sigmoid(), torch.nn.Identity(), torch.tanh, lambda logits: 2 * logits.double() + 1],
    ids=["none", "Sigmoid", "Identity", "tanh", "lambda"],
)
def test_activations_and_softmax_apply_as_in_the_original(both: Both, activation: Any, softmax: bool) -> None:
    options = {"activation_fn": activation, "apply_softmax": softmax}
    assert_same(both.ours.predict(PAIRS, **options), both.original.predict(PAIRS, **options))


def test_an_activation_may_choose_a_column(three: Both) -> None:
    def last(logits: torch.Tensor) -> torch.Tensor:
        return logits[:, 2]

    assert_same(three.ours.predict(PAIRS, activation_fn=last), three.original.predict(PAIRS, activation_fn=last))


def test_an_activation_can_be_named_without_torch(one: Both) -> None:
    for name, original in (("sigmoid", torch.nn.Sigmoid()), (Activation.IDENTITY, torch.nn.Identity())):
        assert_same(
            one.ours.predict(PAIRS, activation_fn=name),  # type: ignore[arg-type]
            one.original.predict(PAIRS, activation_fn=original),
        )
    with pytest.raises(
        InputError, match="unknown activation; got 'relu'; allowed: identity, sigmoid, softmax, or a function"
    ):
        one.ours.predict(PAIRS, activation_fn="relu")


def test_an_activation_that_drops_rows_is_refused(one: Both) -> None:
    with pytest.raises(InputError, match=r"a row for each pair; got shape \[2, 1\]"):
        one.ours.predict(PAIRS, activation_fn=lambda logits: logits[:2])


def test_the_activation_of_the_constructor_and_of_the_attribute_apply(one: Both) -> None:
    raw = one.original.predict(PAIRS, activation_fn=torch.nn.Identity())
    with CrossEncoder(one.bundle, activation_fn=torch.nn.Identity()) as model:
        assert_same(model.predict(PAIRS), raw)
        model.activation_fn = torch.nn.Sigmoid()
        assert_same(model.predict(PAIRS), one.original.predict(PAIRS))


def test_the_activation_that_the_checkpoint_names_applies(three: Both) -> None:
    assert three.ours.activation_fn is Activation.SIGMOID
    assert_same(three.ours.predict(PAIRS), three.original.predict(PAIRS, activation_fn=torch.nn.Sigmoid()))


# --- predict: the rest


@pytest.mark.parametrize("batch_size", [1, 2, 1000])
def test_batch_size_does_not_change_scores(one: Both, batch_size: int) -> None:
    assert_same(one.ours.predict(PAIRS, batch_size=batch_size), one.original.predict(PAIRS, batch_size=batch_size))


def test_a_batch_size_below_one_is_refused(one: Both) -> None:
    with pytest.raises(ValueError, match="batch_size"):
        one.original.predict(PAIRS, batch_size=0)
    with pytest.raises(InputError, match="batch_size is too small; got 0; allowed: 1 or more"):
        one.ours.predict(PAIRS, batch_size=0)


@pytest.mark.parametrize(
    "options",
    [
        {"prompt": "query: "},
        {"prompt": ""},
        {"prompt_name": "web"},
        {"prompt_name": "none"},
        {"prompt": "query: ", "prompt_name": "web"},
        {},
    ],
)
def test_prompts_go_before_the_query(one: Both, options: dict[str, str]) -> None:
    prompts = {"web": "people ask: ", "none": "", "default": "the city "}
    original = Original(str(one.checkpoint), device="cpu", prompts=prompts, default_prompt_name="default")
    with CrossEncoder(one.bundle, prompts=prompts, default_prompt_name="default") as ours:
        assert_same(ours.predict(PAIRS, **options), original.predict(PAIRS, **options))
        assert ranking(ours.rank(QUERY, DOCUMENTS, **options)) == ranking(original.rank(QUERY, DOCUMENTS, **options))


def test_a_prompt_that_is_not_there_is_refused(one: Both) -> None:
    with pytest.raises(InputError, match="no such prompt name here; got 'web'; allowed: none"):
        one.ours.predict(PAIRS, prompt_name="web")
    with pytest.raises(InputError, match="no such prompt name here; got 'web'; allowed: other"):
        CrossEncoder(one.bundle, prompts={"other": "x"}, default_prompt_name="web")


@pytest.mark.parametrize(("shown", "level"), [(True, logging.WARNING), (None, logging.INFO), (None, logging.DEBUG)])
def test_progress_is_shown_on_stderr(
    one: Both, shown: bool | None, level: int, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(level, logger="crossforge"):
        one.ours.predict(PAIRS, show_progress_bar=shown)
    captured = capsys.readouterr()
    assert f"{len(PAIRS)}/{len(PAIRS)}" in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(("shown", "level"), [(False, logging.INFO), (None, logging.WARNING)])
def test_progress_is_not_shown(
    one: Both, shown: bool | None, level: int, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(level, logger="crossforge"):
        one.ours.predict(PAIRS, show_progress_bar=shown)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("device", [None, "cpu", torch.device("cpu")])
def test_the_device_where_the_model_runs_is_taken(one: Both, device: Any) -> None:
    assert_same(one.ours.predict(PAIRS, device=device), one.original.predict(PAIRS, device=device))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "cuda"}, "the model was loaded elsewhere; got cuda; allowed: cpu. Load it with device=."),
        ({"device": "mps"}, "there is no such device here; got 'mps'; allowed: cpu, cuda, cuda:0"),
        ({"device": ["cpu", "cpu"]}, "does not run on several devices at once"),
        ({"pool": {"processes": []}}, "a bundle does not take a pool; got"),
    ],
)
def test_other_devices_and_pools_are_refused(one: Both, options: dict[str, Any], words: str) -> None:
    for call in (lambda: one.ours.predict(PAIRS, **options), lambda: one.ours.rank(QUERY, DOCUMENTS, **options)):
        with pytest.raises(InputError, match=re.escape(words)) as refusal:
            call()
        assert f'"{refusal.value.what}"' in PAGE


def test_processing_kwargs_are_refused(one: Both) -> None:
    with pytest.raises(InputError, match=r"does not take processing_kwargs; got \{'text'"):
        one.ours.predict(PAIRS, processing_kwargs={"text": {"max_length": 9}})


def test_a_chunk_size_has_no_effect_without_a_pool(one: Both) -> None:
    assert_same(one.ours.predict(PAIRS, chunk_size=1), one.original.predict(PAIRS, chunk_size=1))


def test_old_names_are_understood(one: Both) -> None:
    options: dict[str, Any] = {"sentences": PAIRS, "activation_fct": torch.nn.Identity(), "num_workers": 2}
    assert_same(one.ours.predict(**options), one.original.predict(**options))
    rank_options = {"activation_fct": torch.nn.Identity(), "num_workers": 2}
    expected = one.original.rank(QUERY, DOCUMENTS, **rank_options)
    assert ranking(one.ours.rank(QUERY, DOCUMENTS, **rank_options)) == ranking(expected)  # type: ignore[call-arg]
    with pytest.raises(InputError, match="sentences is the old name of inputs, and both are given; allowed: one of them"):
        one.ours.predict(inputs=PAIRS, sentences=PAIRS)  # type: ignore[call-arg]


def test_an_argument_that_neither_has_is_a_type_error(one: Both) -> None:
    with pytest.raises(TypeError, match="batchsize"):
        one.ours.predict(PAIRS, batchsize=3)  # type: ignore[call-arg]


# --- rank


def ranking(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with rounded scores, so that they compare."""
    return [{**row, "score": round(float(row["score"]), 3)} for row in rows]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 2},
        {"top_k": 0},
        {"top_k": 99},
        {"return_documents": True},
        {"return_documents": True, "top_k": 1},
        {"batch_size": 1},
        {"activation_fn": torch.nn.Identity()},
        {"apply_softmax": True},
        {"convert_to_tensor": True},
        {"convert_to_numpy": False},
        {"show_progress_bar": False},
        {"chunk_size": 1},
        {"device": "cpu"},
    ],
    ids=str,
)
def test_rank_returns_what_the_original_does(one: Both, options: dict[str, Any]) -> None:
    ours, original = one.ours.rank(QUERY, DOCUMENTS, **options), one.original.rank(QUERY, DOCUMENTS, **options)
    assert ranking(ours) == ranking(original)
    for our_row, original_row in zip(ours, original, strict=True):
        assert list(our_row) == list(original_row)
        assert {name: type(value) for name, value in our_row.items()} == {n: type(v) for n, v in original_row.items()}
        assert our_row["score"].dtype == original_row["score"].dtype


def test_arguments_of_rank_may_be_given_by_position(one: Both) -> None:
    assert ranking(one.ours.rank(QUERY, DOCUMENTS, 2, True)) == ranking(one.original.rank(QUERY, DOCUMENTS, 2, True))


def test_no_documents_make_an_empty_ranking(one: Both) -> None:
    assert one.ours.rank(QUERY, []) == one.original.rank(QUERY, []) == []


def test_rank_refuses_several_labels_as_the_original_does(three: Both) -> None:
    with pytest.raises(ValueError, match="num_labels=1"):
        three.original.rank(QUERY, DOCUMENTS)
    with pytest.raises(InputError, match=r"rank\(\) is for models with one label; got 3 labels\. Use predict"):
        three.ours.rank(QUERY, DOCUMENTS)


def test_rank_refuses_what_is_surely_a_mistake(one: Both) -> None:
    with pytest.raises(InputError, match="documents must be a list; got str 'a text'"):
        one.ours.rank(QUERY, "a text")
    with pytest.raises(InputError, match="top_k is negative; got -1"):
        one.ours.rank(QUERY, DOCUMENTS, top_k=-1)


# --- the constructor


@pytest.mark.parametrize("max_length", [12, 40, 96])
def test_max_length_cuts_as_in_the_original(one: Both, max_length: int) -> None:
    original = Original(str(one.checkpoint), device="cpu", max_length=max_length)
    pairs = [("the city", LONG_PAIR[1]), *PAIRS[:1]] if max_length == 12 else [LONG_PAIR, *PAIRS]
    with CrossEncoder(one.bundle, max_length=max_length) as ours:
        assert ours.max_length == ours.max_seq_length == original.max_seq_length == max_length
        with pytest.warns(TruncationWarning):
            scores = ours.predict(pairs)
        assert_same(scores, original.predict(pairs))


@pytest.mark.parametrize("max_length", [4, 97])
def test_a_max_length_that_does_not_fit_is_refused(one: Both, max_length: int) -> None:
    with pytest.raises(InputError, match=f"max_length does not suit the bundle; got {max_length}; allowed: 5 to 96"):
        CrossEncoder(one.bundle, max_length=max_length)


def test_the_right_number_of_labels_is_taken_and_another_refused(three: Both) -> None:
    with CrossEncoder(three.bundle, num_labels=3) as model:
        assert model.num_labels == three.original.num_labels == 3
    with pytest.raises(InputError, match="another number of labels; got 1; allowed: 3"):
        CrossEncoder(three.bundle, num_labels=1)


def test_what_has_no_effect_on_a_bundle_is_taken(one: Both, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "device": torch.device("cpu"),
        "cache_folder": str(tmp_path),
        "trust_remote_code": True,
        "local_files_only": True,
        "token": "secret",
        "model_card_data": object(),
        "model_kwargs": {},
        "processor_kwargs": {},
        "config_kwargs": {},
        "classifier_dropout": 0.1,
        "backend": "onnx",
    }
    with CrossEncoder(str(one.bundle), **options) as model:
        assert (model.predict(PAIRS) == one.ours.predict(PAIRS)).all()
        assert model.device == "cpu"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"modules": [torch.nn.Identity()]}, "does not take modules"),
        ({"processor_kwargs": {"do_lower_case": True}}, "does not take processor_kwargs; got {'do_lower_case': True}"),
        ({"tokenizer_kwargs": {"use_fast": False}}, "does not take processor_kwargs"),
        ({"config_kwargs": {"num_labels": 2}}, "does not take config_kwargs"),
        ({"revision": "abc"}, "of another revision; got abc; allowed: None"),
        ({"backend": "openvino"}, "does not run in this backend; got 'openvino'; allowed: torch, onnx"),
        ({"device": "cuda:1"}, "no such device here; got 'cuda:1'; allowed: cpu, cuda, cuda:0"),
        ({"model_kwargs": {"torch_dtype": "float16"}}, "these model_kwargs; got {'torch_dtype': 'float16'}"),
        ({"model_kwargs": {"export": True}}, "is exported already"),
        ({"model_kwargs": {"file_name": "model_fp8.onnx"}}, "no such file_name here; got 'model_fp8.onnx'; allowed: onnx/"),
        ({"model_kwargs": {"provider": "DmlExecutionProvider"}}, "no such provider here"),
        (
            {"model_kwargs": {"provider": "CUDAExecutionProvider"}, "device": "cpu"},
            "device and provider contradict each other; got cpu and CUDAExecutionProvider",
        ),
        (
            {"model_kwargs": {"file_name": "onnx/model.onnx"}, "precision": "int8"},
            "precision and file_name contradict each other; got int8 and onnx/model.onnx",
        ),
        ({"activation_fn": "relu"}, "unknown activation"),
        ({"precision": "int3"}, "unknown precision"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_a_bundle_cannot_honour_is_refused(one: Both, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)) as refusal:
        CrossEncoder(**{"model_name_or_path": one.bundle} | options)
    assert f'"{refusal.value.what}"' in PAGE


def test_an_old_name_beside_its_new_one_is_refused(one: Both) -> None:
    with pytest.raises(InputError, match="model_name is the old name of model_name_or_path, and both are given"):
        CrossEncoder(model_name_or_path=one.bundle, model_name="x")  # type: ignore[call-arg]


def test_a_device_that_is_named_and_not_there_is_an_error(one: Both) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(MachineError):
        CrossEncoder(one.bundle, device="cuda")


def test_no_bundle_and_a_hub_id_that_is_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no bundle is named"):
        CrossEncoder()
    with pytest.raises(BundleNotFoundError, match="Make one: crossforge export"):
        CrossEncoder(str(tmp_path / "cross-encoder" / "ms-marco-MiniLM-L6-v2"))


@pytest.mark.parametrize(
    "options", [{"precision": "fp16"}, {"model_kwargs": {"file_name": "onnx/model_fp16.onnx"}}], ids=str
)
def test_a_variant_is_chosen(tmp_path: Path, options: dict[str, Any]) -> None:
    bundle = write_bundle(tmp_path / "bundle", precisions=(Precision.FP32, Precision.FP16))
    with CrossEncoder(bundle, **options, device="cpu") as model:
        assert model.reranker.precision is Precision.FP16


@pytest.mark.parametrize(("file_name", "precision"), [("model.onnx", "fp32"), ("onnx/model_int8.onnx", "int8")])
def test_the_call_that_opens_the_bundle_in_the_original_opens_it_here(
    demo_bundle: Path, file_name: str, precision: str
) -> None:
    options: dict[str, Any] = {
        "backend": "onnx",
        "model_kwargs": {"file_name": file_name, "provider": "CPUExecutionProvider", "export": False},
    }
    with CrossEncoder(str(demo_bundle), **options) as ours:
        assert ours.reranker.precision == precision


def test_the_demo_model_predicts_and_ranks_as_the_original(demo_bundle: Path) -> None:
    original = Original(str(materialize_demo_model()), device="cpu", max_length=512)
    record = berlin()
    documents = [passage.text for passage in record.passages]
    with CrossEncoder(str(demo_bundle), device="cpu", max_length=512, precision="fp32") as ours:
        pairs = [(record.query, document) for document in documents]
        np.testing.assert_allclose(ours.predict(pairs), original.predict(pairs), rtol=0, atol=1e-4)
        our_ids = [row["corpus_id"] for row in ours.rank(record.query, documents, top_k=5)]
        assert our_ids == [row["corpus_id"] for row in original.rank(record.query, documents, top_k=5)]
