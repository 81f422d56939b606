"""The constructor beside the original's, and the whole on the demo model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder as Original

from crossforge.export.demo import materialize_demo_model
from crossforge.export.pairs import berlin
from crossforge.profiles import BundleNotFoundError, InputError, MachineError, Precision, TruncationWarning
from crossforge.runtime import CrossEncoder
from support.builders import write_bundle
from support.cross_encoders import LONG_PAIR, PAIRS, Both, assert_same

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "sentence-transformers.md").read_text(encoding="utf-8")


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
