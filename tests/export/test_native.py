"""The native variant: what it is made of, that it ranks as int8 does, and which models it refuses."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crossforge.export.exporter import export_bundle
from crossforge.export.native import check_architecture, renumber_words
from crossforge.export.trimming import trim_bundle
from crossforge.profiles import (
    ExecutionProvider,
    InputError,
    IntegrityError,
    Precision,
    ProviderUnavailableError,
    SourceError,
)
from crossforge.runtime.machine import inspect_machine
from crossforge.runtime.providers import why_not
from crossforge.runtime.reranker import Reranker
from crossforge.runtime.verification import verify_bundle
from support.encoders import make_encoder, make_shape
from support.few_packages import edge_requirements, rank_with
from support.tiny_models import UNGATED, save_tiny_model

BERT: dict[str, Any] = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_attention_heads": 12,
}
OPTIONS = dataclasses.replace(UNGATED, precisions=(Precision.FP32, Precision.INT8, Precision.INT8_NATIVE))
PAIRS = [("how many people live in berlin?", passage) for passage in ("berlin", "a city of 3.5 million", "bees " * 60)]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "deberta-v2"}, "other encoders"),
        ({"hidden_act": "gelu_new"}, "exact GELU"),
        ({"position_embedding_type": "relative_key"}, "learned positions"),
        ({"hidden_size": 96, "num_attention_heads": 3}, "panels are 64 columns wide"),
        ({"intermediate_size": 100}, "panels are 64 columns wide"),
        ({"num_attention_heads": 4}, "attention heads have other widths"),
    ],
    ids=str,
)
def test_a_model_that_the_engine_does_not_compute_is_refused_with_the_reason(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(SourceError, match=f"the native engine cannot run this model: .*{re.escape(reason)}"):
        check_architecture(BERT | changes)


def test_a_model_of_the_kind_that_it_computes_is_not_refused() -> None:
    check_architecture(BERT)


def test_without_the_engine_the_variant_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    checkpoint = save_tiny_model(tmp_path / "checkpoint", hidden_size=64, intermediate_size=128)
    with pytest.raises(ProviderUnavailableError, match="cannot measure an int8_native variant"):
        export_bundle(str(checkpoint), tmp_path / "bundle", OPTIONS)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    "architecture", ["bert", *(pytest.param(name, marks=pytest.mark.slow) for name in ("roberta", "xlm-roberta"))]
)
@pytest.mark.usefixtures("native_engine")
def test_the_native_variant_is_as_near_to_float32_as_int8_is(tmp_path: Path, architecture: str) -> None:
    checkpoint = save_tiny_model(tmp_path / "checkpoint", architecture, hidden_size=64, intermediate_size=128, labels=2)
    path = tmp_path / "bundle"
    manifest = export_bundle(str(checkpoint), path, OPTIONS)
    int8, native = (manifest.variants[precision].parity for precision in (Precision.INT8, Precision.INT8_NATIVE))
    assert native.mean_abs_diff < 1.3 * int8.mean_abs_diff
    assert native.max_abs_diff < 2 * int8.max_abs_diff
    assert manifest.variants[Precision.INT8_NATIVE].path == "native/model_int8.safetensors"
    assert verify_bundle(path).passed
    if architecture == "bert":
        chosen = rank_with([*edge_requirements("int8_native.txt")], path)[:2]
        assert chosen == (ExecutionProvider.NATIVE, Precision.INT8_NATIVE), "it needs no ONNX Runtime"
    with Reranker.load(path) as reranker:
        assert reranker.session.provider is ExecutionProvider.NATIVE
        together = reranker.score_pairs(PAIRS).logits
        alone = [reranker.score_pairs([pair]).logits[0] for pair in PAIRS]
    assert together.tolist() == [row.tolist() for row in alone]
    trimmed = trim_bundle(path, tmp_path / "trimmed", [text for pair in PAIRS for text in pair])  # compares what they answer
    assert trimmed.variants[Precision.INT8_NATIVE].parity == manifest.variants[Precision.INT8_NATIVE].parity
    with Reranker.load(tmp_path / "trimmed", provider="native", strict=True) as reranker:
        assert reranker.score_pairs(PAIRS).logits.tolist() == together.tolist()


@pytest.mark.usefixtures("native_engine")
def test_a_damaged_native_file_is_refused(tmp_path: Path) -> None:
    checkpoint = save_tiny_model(tmp_path / "checkpoint", hidden_size=64, intermediate_size=128)
    path = tmp_path / "bundle"
    export_bundle(str(checkpoint), path, OPTIONS)
    file = path / Precision.INT8_NATIVE.path
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match=re.escape(f"is damaged: {Precision.INT8_NATIVE.path}")):
        Reranker.load(path)


def test_renumbered_words_keep_their_rows() -> None:
    encoder = make_encoder(make_shape(vocabulary=5, padding_id=1))
    renumbered = renumber_words(encoder, np.asarray([0, 1, -1, 3, 2]))
    assert renumbered.shape.vocabulary == 4
    for name in ("words", "words.scale"):
        np.testing.assert_array_equal(renumbered.tensors[name], encoder.tensors[name][[0, 1, 4, 3]])


@pytest.mark.parametrize(
    ("new_ids", "reason"),
    [([0, 1, 2], "another vocabulary"), ([-1, 0, 1, 2, 3], "counts positions from the padding token's id")],
)
def test_words_that_cannot_be_renumbered_are_refused(new_ids: list[int], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        renumber_words(make_encoder(make_shape(vocabulary=5, padding_id=1)), np.asarray(new_ids))


@pytest.fixture
def native_engine(native_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled engine where crossforge looks for it; skips where this processor cannot run it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(native_library.parents[2]))
    if reason := why_not(ExecutionProvider.NATIVE, inspect_machine()):
        pytest.skip(reason)
