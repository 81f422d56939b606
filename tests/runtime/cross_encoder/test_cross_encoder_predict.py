"""``predict`` beside the original's."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder as Original

from crossforge.profiles import ExecutionProvider, InputError
from crossforge.runtime import Activation, CrossEncoder
from support.cross_encoders import DOCUMENTS, PAIRS, QUERY, Both, assert_same, ranking

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "sentence-transformers.md").read_text(encoding="utf-8")


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


@pytest.mark.parametrize("provider", [ExecutionProvider.NATIVE, ExecutionProvider.OPENVINO])
def test_the_other_engines_of_the_processor_run_on_the_cpu_too(
    one: Both, provider: ExecutionProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(one.ours.reranker.session), "provider", provider)
    assert one.ours.device == "cpu"
    one.ours.predict(PAIRS, device="cpu")


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
