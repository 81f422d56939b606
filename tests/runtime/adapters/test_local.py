"""What all adapters rank with, and what they say where their framework is missing."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from crossforge.profiles import EngineError, InputError, TruncationWarning
from crossforge.runtime import FakeSession, Reranker
from crossforge.runtime.adapters.local import LocalRanker
from crossforge.runtime.microbatch import MicroBatcher
from support.builders import fake_reranker
from support.sessions import GatedSession

from .conftest import BEST_FIRST, QUERY, SCORES, TEXTS

REPOSITORY = Path(__file__).resolve().parents[3]
LOADING = {"provider": "auto", "precision": "auto"}
ADAPTERS = [
    ("langchain", "langchain_core", "langchain-core", "langchain"),
    ("llama_index", "llama_index", "llama-index-core", "llama-index"),
    ("haystack", "haystack", "haystack-ai", "haystack"),
]


def run_python(code: str, *arguments: str) -> str:
    paths = os.pathsep.join(str(REPOSITORY / root) for root in ("export", "runtime", "profiles"))
    environment = {**os.environ, "PYTHONPATH": paths, "HAYSTACK_TELEMETRY_ENABLED": "False"}
    done = subprocess.run([sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_open_reranker_and_a_micro_batcher_rank_the_same(reranker: Reranker) -> None:
    with MicroBatcher(reranker) as batcher:
        for model in (reranker, batcher):
            ranker = LocalRanker(model, **LOADING)
            rows = ranker.rank(QUERY, TEXTS, None)
            assert [(row.corpus_id, row.score) for row in rows] == list(zip(BEST_FIRST, SCORES, strict=True))
            assert asyncio.run(ranker.rank_async(QUERY, TEXTS, None)) == rows
            assert ranker.rank(QUERY, TEXTS, 2) == asyncio.run(ranker.rank_async(QUERY, TEXTS, 2)) == rows[:2]


def test_a_bundle_is_closed_and_an_open_reranker_is_left_to_its_owner(bundle: Path, reranker: Reranker) -> None:
    owned = LocalRanker(bundle, **LOADING)
    assert owned.name == str(bundle)
    owned.close()
    with pytest.raises(EngineError, match="closed"):
        owned.rank(QUERY, TEXTS, None)
    lent = LocalRanker(reranker, **LOADING)
    assert lent.name == "tiny"
    lent.close()
    assert reranker.rank(QUERY, TEXTS)


def test_the_event_loop_goes_on_while_a_batch_computes() -> None:
    session = GatedSession()

    async def rank_and_release(ranker: LocalRanker) -> list[int]:
        ranking = asyncio.ensure_future(ranker.rank_async(QUERY, TEXTS, None))
        await asyncio.to_thread(session.wait_for_a_batch)
        assert not ranking.done()
        session.let_through()
        return [row.corpus_id for row in await ranking]

    with fake_reranker(session) as reranker:
        ranker = LocalRanker(reranker, **LOADING)
        assert sorted(asyncio.run(rank_and_release(ranker))) == [0, 1, 2, 3]


def test_concurrent_calls_through_a_micro_batcher_share_a_batch() -> None:
    session = GatedSession()

    async def rank_all(ranker: LocalRanker) -> None:
        first = asyncio.ensure_future(ranker.rank_async(QUERY, TEXTS[:1], None))
        await asyncio.to_thread(session.wait_for_a_batch)
        others = [asyncio.ensure_future(ranker.rank_async(QUERY, [text], None)) for text in TEXTS[1:]]
        while batcher.stats().pending_requests < len(TEXTS):
            await asyncio.sleep(0)
        session.let_through()
        await asyncio.gather(first, *others)

    with fake_reranker(session) as reranker, MicroBatcher(reranker) as batcher:
        asyncio.run(rank_all(LocalRanker(batcher, **LOADING)))
    assert [len(batch["input_ids"]) for batch in session.batches] == [1, 3]


def test_a_cut_text_is_told(reranker: Reranker) -> None:
    with pytest.warns(TruncationWarning, match="1 of 2 pairs were too long"):
        LocalRanker(reranker, **LOADING).rank(QUERY, ["the city " * 60, "berlin"], None)


@pytest.mark.parametrize("query", ["", "  "])
def test_a_blank_query_is_refused(reranker: Reranker, query: str) -> None:
    ranker = LocalRanker(reranker, **LOADING)
    with pytest.raises(InputError, match="query of pair 0 is empty"):
        ranker.rank(query, TEXTS, None)
    with pytest.raises(InputError, match="query of pair 0 is empty"):
        asyncio.run(ranker.rank_async(query, TEXTS, None))


def test_a_limit_below_one_is_refused_before_anything_is_computed(session: FakeSession, reranker: Reranker) -> None:
    with pytest.raises(InputError, match="top_k is too small; got 0"):
        LocalRanker(reranker, **LOADING).rank(QUERY, TEXTS, 0)
    assert session.batches == []


@pytest.mark.parametrize(("module", "blocked", "package", "extra"), ADAPTERS)
def test_a_missing_framework_answers_with_its_pip_line(module: str, blocked: str, package: str, extra: str) -> None:
    code = f"""
import sys
sys.modules[{blocked!r}] = None
from crossforge.profiles import MissingPackageError
try:
    from crossforge.runtime.adapters.{module} import CrossforgeReranker
except MissingPackageError as error:
    print(error)
"""
    message = run_python(code)
    assert f"needs the package {package}, which is not installed" in message
    assert f'Run: pip install "crossforge[{extra}]"' in message


@pytest.mark.slow
@pytest.mark.parametrize(("module", "call"), [
    ("langchain", "compress_documents([Document(page_content='berlin')], 'where')[0].metadata['relevance_score']"),
    ("llama_index", "postprocess_nodes([NodeWithScore(node=TextNode(text='berlin'))], query_str='where')[0].score"),
    ("haystack", "run('where', [Document(content='berlin')])['documents'][0].score"),
])  # fmt: skip
def test_no_adapter_needs_torch(bundle: Path, module: str, call: str) -> None:
    imports = {
        "langchain": "from langchain_core.documents import Document",
        "llama_index": "from llama_index.core.schema import NodeWithScore, TextNode",
        "haystack": "from haystack import Document",
    }
    code = f"""
import sys
sys.modules.update(dict.fromkeys(("torch", "transformers", "sentence_transformers")))
{imports[module]}
from crossforge.runtime.adapters.{module} import CrossforgeReranker
print(CrossforgeReranker(model=sys.argv[1]).{call})
"""
    with Reranker.load(bundle) as reranker:
        expected = reranker.score("where", ["berlin"])[0]
    assert float(run_python(code, str(bundle))) == pytest.approx(float(expected), abs=1e-5)
