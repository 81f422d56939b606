from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from crossforge.export.hub.card import SourceFacts, base_model, is_generated, make_card
from crossforge.export.hub.programs import make_programs
from crossforge.profiles import (
    Embedding,
    Manifest,
    ParityQuality,
    Pooling,
    Precision,
    Prompt,
    Similarity,
    Source,
    Trimming,
)
from crossforge.runtime import Reranker
from crossforge.runtime.bundle import Bundle
from support.builders import make_manifest, make_parity, make_variant
from support.fake_hub import FakeHub, publish

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def front_matter(card: str) -> dict[str, Any]:
    _, header, _ = card.split("---\n", 2)
    document = yaml.safe_load(header)
    assert isinstance(document, dict)
    return document


def manifest_of(source: str, *, revision: str | None = None, **overrides: Any) -> Manifest:
    return make_manifest(source=Source(id=source, revision=revision, weights_sha256="2" * 64), **overrides)


def test_the_front_matter_has_what_the_hub_looks_for() -> None:
    facts = SourceFacts(license="apache-2.0", language=("en", "de"))
    assert front_matter(make_card(manifest_of("cross-encoder/base", revision=COMMIT), "org/name", facts)) == {
        "language": ["en", "de"],
        "license": "apache-2.0",
        "library_name": "crossforge",
        "pipeline_tag": "text-ranking",
        "base_model": "cross-encoder/base",
        "base_model_relation": "quantized",
        "tags": ["crossforge", "cross-encoder", "reranker", "onnx", "sentence-transformers", "fp32"],
    }


def test_a_causal_reranker_is_tagged_by_what_runs_it() -> None:
    prompt = Prompt(prefix="<s>", body="{instruction}: {query} {passage}", suffix="</s>", instruction="Find it.")
    card = make_card(manifest_of("Qwen/Qwen3-Reranker-0.6B", prompt=prompt), "org/name", SourceFacts())
    header = front_matter(card)

    assert (header["pipeline_tag"], header["library_name"]) == ("text-ranking", "crossforge")
    assert (header["base_model"], header["base_model_relation"]) == ("Qwen/Qwen3-Reranker-0.6B", "quantized")
    assert header["tags"] == ["crossforge", "cross-encoder", "reranker", "onnx", "fp32"]
    assert "The causal reranker [Qwen/Qwen3-Reranker-0.6B]" in card
    assert '- Instruction: `"Find it."`, or what' in card


def test_a_bi_encoder_is_told_as_one() -> None:
    embedding = Embedding(
        dimension=4,
        pooling=(Pooling.MEAN, Pooling.CLS),
        dense=("8 to 4, Tanh",),
        normalize=True,
        similarity=Similarity.DOT,
        prompts={"query": 'find "it": '},
        default_prompt=None,
    )
    card = make_card(manifest_of("org/embedder", embedding=embedding), "org/name", SourceFacts())
    header = front_matter(card)

    assert (header["pipeline_tag"], header["library_name"]) == ("sentence-similarity", "crossforge")
    assert header["tags"] == ["crossforge", "bi-encoder", "feature-extraction", "onnx", "fp32"]
    assert "4 numbers; mean and cls pooling, a dense layer (8 to 4, Tanh), scaled to length 1. Compared by dot" in card
    assert r'`"find \"it\": "` is put before a query' in card
    assert "| variant | against | queries | pairs | largest difference |" in card
    assert "CrossEncoder" not in card
    assert "predict" not in card


@pytest.mark.parametrize("source", ["my-model", "demo"])
def test_nothing_is_invented_of_a_model_from_a_folder(source: str) -> None:
    known = front_matter(make_card(manifest_of(source), "org/name", SourceFacts()))
    assert known.keys() == {"library_name", "pipeline_tag", "tags"}


@pytest.mark.parametrize(
    ("source", "revision", "base"),
    [("org/base", None, "org/base"), ("bert", COMMIT, "bert"), ("bert", None, None)],
)
def test_a_name_with_an_owner_or_a_commit_is_one_of_the_hubs(source: str, revision: str | None, base: str | None) -> None:
    assert base_model(manifest_of(source, revision=revision).source) == base


def test_each_variant_has_its_size_its_recipe_and_its_parity() -> None:
    int8 = make_variant(Precision.INT8, parity=make_parity(reference="fp32", kendall_tau=0.9868, passed=False))
    card = make_card(
        make_manifest(variants={Precision.FP32: make_variant(), Precision.INT8: int8}), "org/name", SourceFacts()
    )

    assert "| int8 | `onnx/model_int8.onnx` | 0.0 | method dynamic, bits 8 |" in card
    assert "| int8 | fp32 | 2 | 20 | 1e-06 | 0.9868 | 1.0000 | 1.0000 | **FAILED** |" in card


def test_quality_on_judged_pairs_is_shown_where_there_is_one() -> None:
    quality = ParityQuality(ndcg_at_10=0.5, mrr_at_10=0.25, reference_ndcg_at_10=0.51, reference_mrr_at_10=0.26)
    judged = make_manifest(variants={Precision.FP32: make_variant(parity=make_parity(quality=quality))})

    assert "| fp32 | 0.5000 | 0.5100 | 0.2500 | 0.2600 |" in make_card(judged, "org/name", SourceFacts())
    assert "nDCG" not in make_card(make_manifest(), "org/name", SourceFacts())


def test_a_trimmed_vocabulary_is_said() -> None:
    manifest = replace(make_manifest(), trimmed=Trimming(kept_tokens=10, removed_tokens=90))
    assert "10 of 100 tokens are left" in make_card(manifest, "org/name", SourceFacts())


@pytest.mark.parametrize(
    ("query_max_length", "said", "strategy"),
    [(16, "the query keeps 16, the passage gives way", "only_second"), (None, "the longer text gives way", "longest_first")],
)
def test_what_gives_way_is_said_and_done(query_max_length: int | None, said: str, strategy: str) -> None:
    manifest = make_manifest()
    manifest = replace(manifest, truncation=replace(manifest.truncation, query_max_length=query_max_length))

    assert said in make_card(manifest, "org/name", SourceFacts())
    assert f'strategy="{strategy}"' in make_programs(manifest, "org/name")["ONNX Runtime"]


def test_a_generated_card_is_told_from_one_that_was_touched() -> None:
    card = make_card(make_manifest(), "org/name", SourceFacts())

    assert is_generated(card)
    assert is_generated(card.replace("\n", "\r\n"))
    assert not is_generated(card.replace("# name", "# My name"))
    assert not is_generated("# name\n")


def test_a_variant_that_onnx_runtime_cannot_run_has_no_snippet_for_it() -> None:
    native = make_variant(Precision.INT8_NATIVE)
    assert list(make_programs(make_manifest(variants={Precision.INT8_NATIVE: native}), "org/name")) == ["crossforge"]


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> Manifest:
    return Bundle.open(tiny_bundle).manifest


@pytest.fixture
def expected(tiny_bundle: Path) -> Iterator[Reranker]:
    with Reranker.load(tiny_bundle, provider="cpu", precision="int8") as reranker:
        yield reranker


@pytest.mark.parametrize(
    ("name", "revision"),
    [
        ("crossforge", None),
        ("crossforge", "next"),
        ("ONNX Runtime", None),
        ("ONNX Runtime", "next"),
        ("sentence-transformers", None),
    ],
)
def test_the_programs_of_the_card_score_as_the_bundle_does(
    hub: FakeHub, tiny_bundle: Path, manifest: Manifest, expected: Reranker, name: str, revision: str | None
) -> None:
    repository = publish(hub, tiny_bundle)
    if revision is not None:
        repository.branches = {revision: repository.branches["main"]}
    # transformers chose the folder of its cache when it was imported, so a folder stands for the hub there.
    repo = str(tiny_bundle) if name == "sentence-transformers" else "org/name"
    program = make_programs(manifest, repo, revision=revision)[name]
    printed: list[Any] = []
    scope: dict[str, Any] = {"print": lambda *values: printed.append(values)}
    exec(compile(program, name, "exec"), scope)

    raw = expected.score(scope["query"], scope["passages"])
    if name == "crossforge":
        ranked = sorted(zip(raw.tolist(), scope["passages"], strict=True), reverse=True)
        assert printed == [(pytest.approx(score, abs=0.011), text) for score, text in ranked]
    elif name == "ONNX Runtime":
        np.testing.assert_allclose(printed[0][0][:, 0], raw, rtol=0, atol=1e-4)
    else:
        pairs = [(scope["query"], passage) for passage in scope["passages"]]
        np.testing.assert_allclose(printed[0][0], expected.predict(pairs), rtol=0, atol=1e-4)
