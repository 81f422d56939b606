"""Bi-encoders: what is read of their folders, and that graph and reference embed as sentence-transformers does."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto

from crossforge.export.bi_encoder import read_bi_encoder
from crossforge.export.onnx import export_transformer, save_onnx
from crossforge.export.passes import fuse_for_cuda, keep_first_row
from crossforge.export.pooling import append_pooling
from crossforge.export.reference import reference_embeddings
from crossforge.export.source import LoadedSource, SourceOptions, load_source
from crossforge.profiles import Activation, InputError, Pooling, SourceError
from crossforge.runtime import Embedder
from crossforge.runtime.activation import Floats
from crossforge.runtime.sessions.ort import OnnxRuntimeSession
from crossforge.runtime.templates import derive_text_template
from crossforge.runtime.tokenization import PairTokenizer
from support.bi_encoders import TEXTS, WIDTH, edit_modules, save_bi_encoder
from support.builders import make_manifest
from support.tiny_models import edit_json

TOLERANCE = 2e-5
"""Of vectors of length 1 or so, computed by two engines in float32."""
SETUPS = {
    **{str(mode): {"pooling": mode} for mode in Pooling},
    "concatenated": {"pooling": ["cls", "mean", "max"]},
    "not normalized": {"pooling": "mean", "normalize": False},
    "dense": {"pooling": "mean", "dense": {16: "Tanh", 8: "Identity"}},
    "dense with GELU": {"pooling": "cls", "dense": {12: "GELU"}, "normalize": False},
}


@functools.cache
def traced(folder: Path) -> tuple[LoadedSource, ModelProto]:
    source = load_source(str(folder))
    return source, export_transformer(source.model)


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedSource, ModelProto]:
    """One transformer for all setups: they differ in what comes after it."""
    return traced(save_bi_encoder(tmp_path_factory.mktemp("transformer") / "model"))


def embed(source: LoadedSource, graph: ModelProto, folder: Path) -> Floats:
    """Through the runtime's tokenizer, batches and session."""
    assert source.bi_encoder is not None
    (path,) = save_onnx(graph, folder / "model.onnx")
    template = derive_text_template(source.tokenizer.backend_tokenizer)
    manifest = make_manifest(
        embedding=source.bi_encoder.embedding,
        pair_template=template,
        truncation=source.truncation,
        input_names=tuple(value.name for value in graph.graph.input),
        pad_token_id=source.tokenizer.pad_token_id,
    )
    tokenizer = PairTokenizer(source.tokenizer.backend_tokenizer, template, source.truncation)
    session = OnnxRuntimeSession(path, labels=manifest.output_columns)
    with Embedder(session, tokenizer, manifest, budget_tokens=64) as embedder:  # so that most batches hold padding
        return embedder.embed(TEXTS).vectors


@pytest.mark.parametrize("setup", SETUPS)
def test_graph_and_reference_embed_as_sentence_transformers_does(
    setup: str, transformer: tuple[LoadedSource, ModelProto], tmp_path: Path
) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = save_bi_encoder(tmp_path / "model", **SETUPS[setup])
    expected = sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode(list(TEXTS))
    source, graph = load_source(str(folder)), transformer[1]
    assert source.bi_encoder is not None
    assert source.source.weights_sha256 == transformer[0].source.weights_sha256 or source.bi_encoder.dense
    whole = append_pooling(graph, source.bi_encoder.embedding, source.bi_encoder.dense)
    scale = float(np.abs(expected).max())
    np.testing.assert_allclose(embed(source, whole, tmp_path), expected, atol=TOLERANCE * scale)
    np.testing.assert_allclose(reference_embeddings(source, TEXTS), expected, atol=TOLERANCE * scale)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["distilbert", "xlm-roberta"])
def test_other_architectures_embed_as_sentence_transformers_does(architecture: str, tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = save_bi_encoder(tmp_path / "model", architecture=architecture)
    expected = sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode(list(TEXTS))
    source, graph = traced(folder)
    assert source.bi_encoder is not None
    found = embed(source, append_pooling(graph, source.bi_encoder.embedding), tmp_path)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_a_folder_that_sentence_transformers_saved_is_read_alike(tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    written = save_bi_encoder(
        tmp_path / "ours", pooling=["mean", "max"], dense={8: "ReLU"}, prompts={"query": "query: "}, similarity_fn_name="dot"
    )
    sentence_transformers.SentenceTransformer(str(written), device="cpu").save(str(tmp_path / "theirs"))
    ours, theirs = (read_bi_encoder(tmp_path / name, name=name) for name in ("ours", "theirs"))
    assert theirs.embedding.prompts == {"query": "query: ", "document": ""}
    assert (
        theirs.max_length == ours.max_length or theirs.max_length is None
    )  # where newer versions leave it to the tokenizer
    assert theirs.embedding.query_prompt == "query: "
    assert theirs.embedding.passage_prompt == ""
    for fact in ("dimension", "pooling", "dense", "normalize", "similarity"):
        assert getattr(theirs.embedding, fact) == getattr(ours.embedding, fact)
    np.testing.assert_array_equal(theirs.dense[0].weight, ours.dense[0].weight)


def test_the_old_names_of_pooling_modes_are_read_in_the_order_of_their_concatenation(tmp_path: Path) -> None:
    folder = save_bi_encoder(tmp_path / "model")
    old = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True, "pooling_mode_max_tokens": False}
    (folder / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": WIDTH, **old}))
    embedding = read_bi_encoder(folder, name="old").embedding
    assert embedding.pooling == (Pooling.CLS, Pooling.MEAN)
    assert embedding.dimension == 2 * WIDTH


def test_cls_pooling_computes_one_row_of_the_last_layer(
    transformer: tuple[LoadedSource, ModelProto], tmp_path: Path
) -> None:
    source = load_source(str(save_bi_encoder(tmp_path / "model", pooling=Pooling.CLS)))
    assert source.bi_encoder is not None
    whole = append_pooling(transformer[1], source.bi_encoder.embedding)
    lean = keep_first_row(whole)
    assert lean.changed
    np.testing.assert_allclose(embed(source, lean.model, tmp_path), embed(source, whole, tmp_path), atol=TOLERANCE)


def test_attention_is_fused_for_cuda_before_any_pooling(
    transformer: tuple[LoadedSource, ModelProto], tmp_path: Path
) -> None:
    source = load_source(str(save_bi_encoder(tmp_path / "model", pooling=[str(mode) for mode in Pooling])))
    assert source.bi_encoder is not None
    fused = fuse_for_cuda(append_pooling(transformer[1], source.bi_encoder.embedding))
    assert "2 Attention" in fused.notes[0]


def test_lowercasing_comes_before_the_tokenizer(tmp_path: Path) -> None:
    folder = save_bi_encoder(tmp_path / "model", architecture="roberta")
    edit_json(folder / "sentence_bert_config.json", do_lower_case=True)
    vectors = reference_embeddings(load_source(str(folder)), ["Berlin", "berlin"])
    np.testing.assert_array_equal(vectors[0], vectors[1])


def test_a_text_may_be_as_long_as_its_own_config_says_or_as_its_positions_reach(tmp_path: Path) -> None:
    folder = str(save_bi_encoder(tmp_path / "model"))
    assert load_source(folder).truncation.max_length == 24
    assert load_source(folder, SourceOptions(max_length=90)).truncation.max_length == 90
    with pytest.raises(SourceError, match=r"max_length does not suit .* got 97; allowed: 4 to 96"):
        load_source(folder, SourceOptions(max_length=97))


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (("sentence_transformers.models.Transformer", "sentence_transformers.models.WordWeights"), "no classification head"),
        (("sentence_transformers.models.CLIPModel",), "got CLIPModel, Pooling, Normalize"),
        ((*("sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling"), "mine.Odd"), "mine.Odd"),
    ],
)
def test_modules_that_cannot_be_put_into_a_graph_are_named(kinds: tuple[str, ...], message: str, tmp_path: Path) -> None:
    folder = save_bi_encoder(tmp_path / "model")
    edit_modules(folder, *kinds)
    with pytest.raises(SourceError, match=message):
        load_source(str(folder))


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("1_Pooling/config.json", {"pooling_mode": "median"}, "pools in an unknown way; got median"),
        ("1_Pooling/config.json", {"include_prompt": False}, "include_prompt false"),
        ("2_Dense/config.json", {"activation_function": "mine.Swish"}, "unknown activation; got mine.Swish"),
        ("2_Dense/config.json", {"module_input_name": "token_embeddings"}, "works on something else"),
        ("config_sentence_transformers.json", {"similarity_fn_name": "hamming"}, "compares in an unknown way; got hamming"),
    ],
)
def test_what_the_graph_cannot_hold_is_refused(file: str, changes: dict[str, object], message: str, tmp_path: Path) -> None:
    folder = save_bi_encoder(tmp_path / "model", dense={8: "Tanh"})
    edit_json(folder / file, **changes)
    with pytest.raises(SourceError, match=message):
        load_source(str(folder))


def test_a_dense_layer_is_not_read_from_a_pickle(tmp_path: Path) -> None:
    folder = save_bi_encoder(tmp_path / "model", dense={8: "Tanh"})
    (folder / "2_Dense/model.safetensors").rename(folder / "2_Dense/pytorch_model.bin")
    with pytest.raises(SourceError, match=r"no weights that may be read.*--allow-pickle"):
        load_source(str(folder))


@pytest.mark.parametrize(
    "options",
    [
        SourceOptions(query_max_length=8),
        SourceOptions(activation=Activation.SIGMOID),
        SourceOptions(ranking_label=0),
        SourceOptions(symmetric=True),
    ],
)
def test_options_of_pairs_are_refused(options: SourceOptions, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a bi-encoder, which embeds each text by itself"):
        load_source(str(save_bi_encoder(tmp_path / "model")), options)
