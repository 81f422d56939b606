"""Every architecture that crossforge promises, exported from a tiny checkpoint and compared with PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from crossforge.export.exporter import export_bundle
from crossforge.export.pairs import calibration_pairs, flatten
from crossforge.profiles import Manifest, Precision
from crossforge.runtime import Reranker
from support.tiny_models import ARCHITECTURES, MAX_LENGTH, UNGATED, save_tiny_model

Pairs = list[tuple[str, str]]

ONE_PAIR: Pairs = [("How many people live in Berlin?", "Berlin has 3.5 million inhabitants.")]
MIXED_LENGTHS: Pairs = [
    ("What is the boiling point of water?", "water boils " * count) for count in (1, 20, 3, 11, 0, 5, 30)
]
AT_MAX_LENGTH: Pairs = [("How high is the tower?", "The tower measures three hundred metres. " * 40)]


@dataclass(frozen=True)
class Exported:
    """A checkpoint and its bundle."""

    architecture: str
    labels: int
    checkpoint: Path
    bundle: Path
    manifest: Manifest

    def pytorch_logits(self, pairs: Pairs) -> NDArray[np.float32]:
        tokenizer = AutoTokenizer.from_pretrained(self.checkpoint)
        model = AutoModelForSequenceClassification.from_pretrained(self.checkpoint).eval()
        queries, passages = [query for query, _ in pairs], [passage for _, passage in pairs]
        inputs = tokenizer(
            queries, passages, truncation="only_second", max_length=MAX_LENGTH, padding=True, return_tensors="pt"
        )
        with torch.inference_mode():
            return np.asarray(model(**inputs).logits, dtype=np.float32)

    def logits(self, precision: str, pairs: Pairs) -> NDArray[np.float32]:
        with Reranker.load(self.bundle, provider="cpu", precision=precision) as reranker:
            return reranker.score_pairs(pairs).logits


@pytest.fixture(scope="module", params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=[1, 3], ids=["one-label", "three-labels"])
def exported(architecture: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp(architecture)
    checkpoint = save_tiny_model(folder / "checkpoint", architecture, labels=request.param)
    manifest = export_bundle(str(checkpoint), folder / "bundle", UNGATED)
    return Exported(architecture, request.param, checkpoint, folder / "bundle", manifest)


@pytest.mark.parametrize("pairs", [ONE_PAIR, MIXED_LENGTHS, AT_MAX_LENGTH], ids=["one-pair", "mixed-lengths", "max-length"])
def test_fp32_answers_pytorchs_logits(exported: Exported, pairs: Pairs) -> None:
    logits = exported.logits("fp32", pairs)
    assert logits.shape == (len(pairs), exported.labels)
    np.testing.assert_allclose(logits, exported.pytorch_logits(pairs), rtol=0, atol=1e-4)


def test_the_logits_tell_pairs_apart(exported: Exported) -> None:
    assert (exported.logits("fp32", MIXED_LENGTHS).std(axis=0) > 0.05).all()


def test_a_pair_at_max_length_fills_the_model(exported: Exported) -> None:
    with Reranker.load(exported.bundle, provider="cpu", precision="fp32") as reranker:
        scored = reranker.score_pairs(AT_MAX_LENGTH)
    assert scored.token_counts.tolist() == [MAX_LENGTH]
    assert scored.truncated.all()


def test_token_type_ids_are_an_input_exactly_where_the_model_reads_them(exported: Exported) -> None:
    token_types = ("token_type_ids",) if ARCHITECTURES[exported.architecture].takes_token_types else ()
    assert exported.manifest.input_names == ("input_ids", "attention_mask", *token_types)


def test_a_deberta_with_segments_takes_token_type_ids(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "checkpoint", "deberta-v2", type_vocab_size=2)  # most have none
    manifest = export_bundle(str(tmp_path / "checkpoint"), tmp_path / "bundle", UNGATED)
    assert manifest.input_names == ("input_ids", "attention_mask", "token_type_ids")
    assert manifest.variants[Precision.FP32].parity.max_abs_diff < 1e-4


@pytest.mark.usefixtures("exact_int8")
def test_int8_follows_fp32(exported: Exported) -> None:
    pairs = flatten(calibration_pairs())
    fp32, int8 = exported.logits("fp32", pairs), exported.logits("int8", pairs)
    assert np.isfinite(int8).all()
    for label in range(exported.labels):
        assert np.corrcoef(fp32[:, label], int8[:, label])[0, 1] > 0.95
    assert (fp32 != int8).any(), "int8 computes the same numbers: nothing was quantized"
