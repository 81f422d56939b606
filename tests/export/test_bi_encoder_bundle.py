"""The bundle of a bi-encoder: the same gate, the same commands, or a refusal in words."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from crossforge.export.cli import app
from crossforge.export.evaluation import evaluate_bundle
from crossforge.export.gates import Gate
from crossforge.export.hub.programs import Runner, make_programs
from crossforge.export.hub.push import push_bundle
from crossforge.export.options import VariantOptions
from crossforge.export.pairs import berlin
from crossforge.export.quantize import quantize_bundle
from crossforge.export.trimming import trim_bundle
from crossforge.profiles import Embedding, GateError, InputError, Pooling, Precision, Similarity
from crossforge.runtime import Bundle, Embedder
from crossforge.runtime.verification import verify_bundle
from support.bi_encoders import MAX_LENGTH, TEXTS, save_bi_encoder
from support.builders import write_manifest
from support.fake_hub import FakeHub

PUBLISHED: dict[str, list[Any]] = {
    "sentences": ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."],
    "similarities": [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]],
}
"""Of all-MiniLM-L6-v2, as sentence-transformers' README prints them."""


def crossforge(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    prompts = {"query": "How many ", "document": ""}
    return save_bi_encoder(tmp_path_factory.mktemp("source") / "tiny", pooling=[Pooling.MEAN, Pooling.CLS], prompts=prompts)


@pytest.fixture(scope="module")
def bundle(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "tiny"
    result = crossforge("export", source, path, "--precision", "fp32,fp16,int8", "--no-gate")
    assert result.exit_code == 0, result.stderr
    assert "Next: in Python, crossforge.runtime.Embedder.load(" in " ".join(result.stdout.split())
    return path


@pytest.fixture(scope="module")
def run_and_qrels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder, record = tmp_path_factory.mktemp("run"), berlin()
    run, qrels = folder / "run.jsonl", folder / "qrels.txt"
    passages = [{"id": passage.id, "text": passage.text} for passage in record.passages]
    run.write_text(json.dumps({"qid": record.qid, "query": record.query, "passages": passages}), encoding="utf-8")
    qrels.write_text("demo 0 demo-02 3\ndemo 0 demo-05 2\ndemo 0 demo-01 0\n", encoding="utf-8")
    return run, qrels


def test_the_manifest_says_what_the_graph_does(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    assert manifest.embedding == Embedding(
        dimension=64,
        pooling=(Pooling.MEAN, Pooling.CLS),
        dense=(),
        normalize=True,
        similarity=Similarity.COSINE,
        prompts={"query": "How many ", "document": ""},
        default_prompt=None,
    )
    assert manifest.architecture == "BertModel"
    assert manifest.truncation.max_length == MAX_LENGTH
    assert manifest.scoring.labels == ("similarity",)
    assert len(manifest.golden) == 8


def test_every_variant_embeds_nearly_as_sentence_transformers_does(source: Path, bundle: Path) -> None:
    model = pytest.importorskip("sentence_transformers").SentenceTransformer(str(source), device="cpu")
    limits = {Precision.FP32: 1e-5, Precision.FP16: 5e-3, Precision.INT8: 5e-2}
    for precision, limit in limits.items():
        with Embedder.load(bundle, precision=precision) as embedder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one text is too long
            np.testing.assert_allclose(embedder.encode(TEXTS), model.encode(list(TEXTS)), atol=limit)
            queries = embedder.encode_queries(TEXTS[:2])
            np.testing.assert_allclose(queries, model.encode_query(list(TEXTS[:2])), atol=limit)


def test_variants_are_judged_by_the_ranking_of_their_similarities(bundle: Path) -> None:
    variants = Bundle.open(bundle).manifest.variants
    assert variants[Precision.FP32].parity.reference == "pytorch"
    assert variants[Precision.FP32].parity.max_abs_diff < 1e-5
    parity = variants[Precision.INT8].parity
    assert (parity.reference, parity.queries, parity.pairs) == ("fp32", 12, 240)
    assert parity.kendall_tau is not None
    assert 0.5 < parity.kendall_tau < 1
    assert 0 < parity.max_abs_diff < 0.2


def test_a_variant_that_ranks_differently_is_refused(bundle: Path, tmp_path: Path) -> None:
    strict = VariantOptions(gates={Precision.INT8: Gate(min_kendall_tau=1.0)}, repair=False)
    with pytest.raises(GateError, match="int8 variant does not rank like fp32"):
        quantize_bundle(bundle, [Precision.INT8], strict, target=tmp_path / "strict")
    assert not (tmp_path / "strict").exists()


def test_the_native_engine_is_refused_in_words(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the native engine computes rerankers alone"):
        quantize_bundle(bundle, [Precision.INT8_NATIVE], target=tmp_path / "native")


def test_verify_finds_an_embedding_that_is_another(bundle: Path, tmp_path: Path) -> None:
    assert verify_bundle(bundle).passed
    copy = tmp_path / "copy"
    trim_bundle(bundle, copy, ["berlin"])
    manifest = Bundle.open(copy).manifest
    assert manifest.embedding is not None
    prompted = dataclasses.replace(manifest.embedding, prompts={"query": "", "document": "bees "})
    write_manifest(copy, dataclasses.replace(manifest, embedding=prompted))
    verification = verify_bundle(copy)
    assert not verification.damaged_files
    assert "golden scores" in verification.problems[0]


def test_a_trimmed_embedder_embeds_the_kept_texts_alike(bundle: Path, tmp_path: Path) -> None:
    trimmed = trim_bundle(bundle, tmp_path / "trimmed", [text for text in TEXTS if text])
    assert trimmed.trimmed is not None
    with Embedder.load(bundle, precision="int8") as before, Embedder.load(tmp_path / "trimmed", precision="int8") as after:
        np.testing.assert_allclose(after.embed(TEXTS).vectors, before.embed(TEXTS).vectors, atol=1e-6)
        queries = [TEXTS[1], TEXTS[3]]
        np.testing.assert_allclose(after.encode_queries(queries), before.encode_queries(queries), atol=1e-6)


def test_evaluate_ranks_by_embeddings(bundle: Path, run_and_qrels: tuple[Path, Path]) -> None:
    evaluation = evaluate_bundle(bundle, *run_and_qrels, embedders=[bundle])
    assert set(evaluation.variants) == {Precision.FP32, Precision.FP16, Precision.INT8}
    assert evaluation.embedders[str(bundle)].quality == evaluation.variants[Precision.INT8].quality
    document = json.loads(
        crossforge(
            *("evaluate", bundle, "--run", run_and_qrels[0], "--qrels", run_and_qrels[1]),
            *("--precision", "fp32", "--embedder", bundle, "--json"),
        ).stdout
    )
    assert document["embedders"][str(bundle)]["precision"] == "int8"
    assert {"ndcg@10", "mrr@10", "recall@100"} <= set(document["embedders"][str(bundle)]) & set(document["first_stage"])


def test_inspect_shows_the_embedding(bundle: Path) -> None:
    shown = crossforge("inspect", bundle).stdout
    assert "64 dimensions; mean and cls pooling, normalized; compared by cosine" in " ".join(shown.split())
    assert "query 'How many '" in shown
    assert json.loads(crossforge("inspect", bundle, "--json").stdout)["embedding"]["dimension"] == 64


@pytest.mark.parametrize(
    "command",
    [
        ("score", "BUNDLE", "-q", "a", "-p", "b"),
        ("profile", "BUNDLE"),
        ("triton", "BUNDLE", "REPOSITORY"),
        ("tune", "BUNDLE", "--out", "REPOSITORY"),
    ],
    ids=lambda command: command[0],
)
def test_commands_for_rerankers_say_what_to_use_instead(command: tuple[str, ...], bundle: Path, tmp_path: Path) -> None:
    places = {"BUNDLE": bundle, "REPOSITORY": tmp_path / "new"}
    result = crossforge(*(places.get(word, word) for word in command))
    assert result.exit_code == 2
    assert "holds a bi-encoder, which embeds texts one by one" in " ".join(result.stderr.split())
    assert "Embedder.load()" in result.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_the_embedded_bi_encoder_gives_the_published_similarities(demo_embedder_bundle: Path) -> None:
    with Embedder.load(demo_embedder_bundle) as embedder:
        vectors = embedder.encode(PUBLISHED["sentences"])
        np.testing.assert_allclose(embedder.similarity(vectors, vectors), PUBLISHED["similarities"], atol=1e-3)


@pytest.mark.filterwarnings("ignore::crossforge.profiles.TruncationWarning")
def test_a_pushed_bundle_embeds_as_it_did_and_so_do_the_programs_of_its_card(hub: FakeHub, bundle: Path) -> None:
    push = push_bundle(bundle, "org/embedder")
    manifest = Bundle.open("org/embedder").manifest
    programs = make_programs(manifest, "org/embedder")
    assert list(programs) == [Runner.CROSSFORGE, Runner.ONNX_RUNTIME]
    assert all(program in push.card for program in programs.values())
    assert hub.repositories["org/embedder"].files()["README.md"].decode() == push.card
    with Embedder.load(bundle, precision="int8") as here:
        assert_the_program_embeds_as(here, programs[Runner.CROSSFORGE])
        for similarity in Similarity:
            prompts = {"query": 'Say "how"\n', "document": "é🦀: "}
            here.embedding = dataclasses.replace(here.embedding, similarity=similarity, prompts=prompts)
            changed = dataclasses.replace(manifest, embedding=here.embedding)
            assert_the_program_embeds_as(here, make_programs(changed, "org/embedder")[Runner.ONNX_RUNTIME])


def assert_the_program_embeds_as(embedder: Embedder, program: str) -> None:
    printed: list[np.ndarray] = []
    scope: dict[str, Any] = {"print": printed.append}
    exec(program, scope)
    expected = embedder.similarity(embedder.encode_queries([scope["query"]]), embedder.encode_passages(scope["passages"]))
    np.testing.assert_allclose(np.ravel(printed[0]), expected[0], atol=1e-4, rtol=1e-5, err_msg=program)
