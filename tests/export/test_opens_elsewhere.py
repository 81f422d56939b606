"""A bundle is also a model folder that other tools open, and there it scores the same."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from crossforge.export.pairs import berlin, calibration_pairs, flatten
from crossforge.runtime import Reranker
from support.onnx_sessions import open_session

PAIRS = flatten([berlin(), *calibration_pairs()[:3]])

VARIANTS = pytest.mark.parametrize(
    ("precision", "file_name"), [("fp32", "onnx/model.onnx"), ("int8", "onnx/model_int8.onnx")], ids=["fp32", "int8"]
)


@cache
def crossforge_scores(bundle: Path, precision: str) -> NDArray[np.float32]:
    with Reranker.load(bundle, provider="cpu", precision=precision) as reranker:
        return reranker.predict(PAIRS)


@VARIANTS
def test_sentence_transformers_scores_a_bundle_the_same(demo_bundle: Path, precision: str, file_name: str) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = sentence_transformers.CrossEncoder(
        str(demo_bundle), backend="onnx", model_kwargs={"file_name": file_name, "provider": "CPUExecutionProvider"}
    )
    assert model[0].model.__class__.__name__ == "ORTModelForSequenceClassification"
    np.testing.assert_allclose(model.predict(PAIRS), crossforge_scores(demo_bundle, precision), rtol=0, atol=1e-4)


@VARIANTS
def test_onnxruntime_and_tokenizers_alone_score_a_bundle_the_same(demo_bundle: Path, precision: str, file_name: str) -> None:
    tokenizer = Tokenizer.from_file(str(demo_bundle / "tokenizer.json"))
    tokenizer.enable_truncation(512, strategy="only_second")
    tokenizer.enable_padding()
    session = open_session(demo_bundle / file_name)
    encodings = tokenizer.encode_batch(PAIRS)
    inputs = {
        "input_ids": np.asarray([encoding.ids for encoding in encodings]),
        "attention_mask": np.asarray([encoding.attention_mask for encoding in encodings]),
        "token_type_ids": np.asarray([encoding.type_ids for encoding in encodings]),
    }
    (logits,) = session.run(["logits"], inputs)
    np.testing.assert_allclose(logits[:, 0], crossforge_scores(demo_bundle, precision), rtol=0, atol=1e-4)


def test_transformers_reads_the_config_and_the_tokenizer(demo_bundle: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.from_pretrained(demo_bundle)
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo_bundle)
    assert config.architectures == ["BertForSequenceClassification"]
    assert tokenizer.is_fast
    assert tokenizer.model_max_length == 512
