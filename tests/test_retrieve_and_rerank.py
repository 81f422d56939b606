"""The example of two-step retrieval: what its store finds, and what it prints."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crossforge.export.quality import read_qrels
from crossforge.runtime import Embedder
from crossforge.runtime.records import read_passages, read_run

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "retrieve_and_rerank"
SCRIPT = FOLDER / "search.py"
EARTHQUAKE = "Which city was destroyed by an earthquake in the eighteenth century?"


def test_every_judgement_names_a_passage_and_a_question() -> None:
    passages = [passage.id for passage in read_passages(FOLDER / "corpus.jsonl")]
    judgements = read_qrels(FOLDER / "qrels.txt")
    assert len(set(passages)) == len(passages) == 120
    assert {record.qid for record in read_run(FOLDER / "questions.jsonl")} == set(judgements)
    assert {passage for grades in judgements.values() for passage in grades} <= set(passages)


@pytest.fixture
def search(
    demo_bundle: Path,
    demo_embedder_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., list[str]]:
    """Runs the script; answers the lines that it printed."""

    def run(*arguments: object) -> list[str]:
        bundles = ("--embedder", demo_embedder_bundle, "--reranker", demo_bundle, "--store", tmp_path / "store")
        monkeypatch.setattr("sys.argv", [str(SCRIPT), *map(str, (*bundles, *arguments))])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return [line.rstrip() for line in capsys.readouterr().out.splitlines()]

    return run


@pytest.mark.slow
def test_it_ranks_measures_and_punctuates(search: Callable[..., list[str]]) -> None:
    lines = search("--queries", 2, "--depths", "5,20")
    rank = next(i for i, line in enumerate(lines) if EARTHQUAKE in line) + 2
    assert lines[rank].split()[0] == "1"
    assert lines[rank].endswith("destroyed most of Lisbon.")
    rows = {line.split()[0]: line.split() for line in lines if line.startswith((" none ", " 5 ", " 20 "))}
    assert set(rows) == {"none", "5", "20"}
    assert all(0 < float(row[1]) <= 1 for row in rows.values())
    assert any("2 judged queries; 20 retrieved, recall@100 1.0000" in line for line in lines)
    assert [line.split()[1] for line in lines if line.endswith("of 2 queries")] == ["bi-encoder", "cross-encoder"] * 2


@pytest.mark.slow
def test_own_passages_are_embedded_once(search: Callable[..., list[str]], tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    texts = ["A violin has four strings.", "Bees visit the flowers.", "Berlin has 3.8 million inhabitants."]
    corpus.write_text("\n".join(json.dumps({"id": f"d{i}", "text": text}) for i, text in enumerate(texts)))
    arguments = ("--corpus", corpus, "-q", "How many people live in Berlin?")
    first, second = search(*arguments), search(*arguments)
    assert first[0].startswith("3 passages embedded in")
    assert second[0].startswith("3 passages are in")
    assert first[1:] == second[1:]
    assert first[5].endswith("Berlin has 3.8 million inhabitants.")
    corpus.write_text(corpus.read_text().replace("3.8", "3.9"))
    assert search(*arguments)[0].startswith("3 passages embedded in")


@pytest.mark.slow
def test_the_store_finds_what_comparing_with_every_passage_finds(demo_embedder_bundle: Path, tmp_path: Path) -> None:
    example: dict[str, Any] = runpy.run_path(str(SCRIPT), run_name="search")
    corpus, query = read_passages(FOLDER / "corpus.jsonl")[:30], "Which river flows through Paris?"
    with Embedder.load(demo_embedder_bundle) as embedder:
        steps = example["TwoSteps"](embedder, example["open_store"](tmp_path, embedder, corpus), reranker=None)
        found = steps.retrieve(query, 5)
        similarities = embedder.similarity(
            embedder.encode_queries([query]), embedder.encode_passages([passage.text for passage in corpus])
        )[0]
    nearest = similarities.argsort()[::-1][:5]
    assert list(found) == [corpus[i].id for i in nearest]
    assert [1 + distance for distance in found.values()] == pytest.approx(similarities[nearest], abs=1e-5)
