"""Two-step retrieval: a bi-encoder finds 100 passages in a vector store, a cross-encoder puts the best 10 in order.

    pip install "crossforge[cpu,export,demo,retrieve]"
    python examples/retrieve_and_rerank/search.py

Without arguments it searches the 120 passages beside it with the embedded models, which it exports the first time.
docs/retrieve-and-rerank.md shows what it prints, and how to give it your own passages and models.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import lancedb
import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from crossforge.export.exporter import export_bundle
from crossforge.export.parity import rank_agreement
from crossforge.export.quality import Scores, compare_quality, measure_quality, read_qrels
from crossforge.runtime import Embedder, Reranker
from crossforge.runtime.console import TerminalProgress
from crossforge.runtime.records import Passage, QueryRecord, read_passages, read_run

HERE = Path(__file__).resolve().parent
KEPT = 10
STAGES = ("embed", "search", "tokenize", "rerank")
DISTANCES = {"cosine": "cosine", "dot": "dot", "euclidean": "l2"}
out = Console(highlight=False, width=120)


@dataclass
class TwoSteps:
    """Both steps, with a stopwatch: ``times_ms`` says where the last query's time went."""

    embedder: Embedder
    store: lancedb.table.Table
    reranker: Reranker

    def __post_init__(self) -> None:
        self.times_ms = dict.fromkeys(STAGES, 0.0)
        self.texts: dict[str, str] = {}

    def retrieve(self, query: str, count: int) -> dict[str, float]:
        """The nearest passages' similarity by id, nearest first."""
        with self._timed("embed"):
            vector = self.embedder.encode_queries([query])[0]
        with self._timed("search"):
            search = self.store.search(vector).distance_type(DISTANCES[self.embedder.embedding.similarity]).limit(count)
            rows = search.select(["id", "text", "_distance"]).to_arrow()
            ids, texts, distances = (rows[name].to_pylist() for name in ("id", "text", "_distance"))
        self.texts = dict(zip(ids, texts, strict=True))
        return {passage: -distance for passage, distance in zip(ids, distances, strict=True)}

    def rerank(self, query: str, ids: Sequence[str]) -> dict[str, float]:
        """The relevance, by id, of passages that the last query retrieved."""
        with self._timed("tokenize"):
            pairs = self.reranker.tokenizer.encode(query, [self.texts[passage] for passage in ids])
        with self._timed("rerank"):
            relevance = self.reranker.relevance(self.reranker.score_encoded(pairs).logits)
        return dict(zip(ids, relevance.tolist(), strict=True))

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = perf_counter()
        yield
        self.times_ms[stage] = (perf_counter() - start) * 1000


def open_store(folder: Path, embedder: Embedder, corpus: Sequence[Passage]) -> lancedb.table.Table:
    """The table of this corpus and this model, in a database of its own: filled once, opened every other time."""
    key = hashlib.sha256(embedder.manifest.to_json().encode() + embedder.precision.encode())
    for passage in corpus:
        key.update(f"{passage.id}\0{passage.text}\0".encode())
    place = folder / key.hexdigest()[:12]
    database = lancedb.connect(place)
    if "passages" in database.list_tables().tables:
        out.print(f"{len(corpus)} passages are in {place}", soft_wrap=True)
        return database.open_table("passages")
    start = perf_counter()
    vectors = embedder.encode_passages([passage.text for passage in corpus])
    embedded = perf_counter()
    columns = {
        "id": [passage.id for passage in corpus],
        "text": [passage.text for passage in corpus],
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1]),
    }
    table = database.create_table("passages", pa.table(columns), exist_ok=True)  # by another process, with the same content
    out.print(
        f"{len(corpus)} passages embedded in {embedded - start:.1f} s "
        f"and stored in {place} in {perf_counter() - embedded:.2f} s",
        soft_wrap=True,
    )
    return table


def show(steps: TwoSteps, query: str, depth: int) -> None:
    """One query's best ten before and after."""
    found = list(steps.retrieve(query, depth))
    scores = steps.rerank(query, found)
    table = Table("", "score", "was", "passage", box=None, title=f'"{query}"', title_justify="left")
    for rank, passage in enumerate(best(scores, KEPT), start=1):
        was = found.index(passage) + 1
        table.add_row(str(rank), f"{scores[passage]:.2f}", str(was), f"{steps.texts[passage]:.98}")
    out.print(table)


def measure(steps: TwoSteps, queries: Sequence[QueryRecord], qrels: Path, depths: Sequence[int]) -> None:
    """Quality and latency, with nothing reranked and with more and more."""
    judgements = read_qrels(qrels)
    queries = [record for record in queries if record.qid in judgements]
    runs: dict[int, dict[str, Scores]] = {depth: {} for depth in (0, *depths)}
    times: dict[int, list[list[float]]] = {depth: [] for depth in runs}
    steps.rerank(queries[0].query, list(steps.retrieve(queries[0].query, max(depths))))  # warm up
    for record in queries:
        steps.times_ms.update(dict.fromkeys(STAGES, 0.0))
        similarities = steps.retrieve(record.query, max(depths))
        for depth in runs:
            ids = list(similarities)
            if depth:
                scores = steps.rerank(record.query, ids[:depth])
                ids = [*best(scores, depth), *ids[depth:]]
            runs[depth][record.qid] = {passage: -float(rank) for rank, passage in enumerate(ids)}
            times[depth].append(list(steps.times_ms.values()))
    qualities = {depth: measure_quality(run, judgements) for depth, run in runs.items()}
    table = Table("reranked", "nDCG@10", "MRR@10", "change of nDCG@10", *STAGES, "together", box=None)
    for depth, quality in qualities.items():
        change = compare_quality(quality, qualities[0])
        milliseconds = (*np.median(times[depth], axis=0), np.median(np.sum(times[depth], axis=1)))
        table.add_row(
            str(depth or "none"),
            f"{quality.ndcg_at_10:.4f}",
            f"{quality.mrr_at_10:.4f}",
            f"{change.mean:+.4f} (p {change.p_value:.3f})" if depth else "",
            *(f"{value:.1f}" if value else "" for value in milliseconds),
        )
    out.print(table)
    out.print(
        f"{len(queries)} judged queries; {max(depths)} retrieved, recall@100 {qualities[0].recall_at_100:.4f}; "
        f"times are medians, in ms\n"
    )


def punctuate(steps: TwoSteps, queries: Sequence[QueryRecord], depth: int) -> None:
    """How far a query's last character moves the order of the same candidates, by either step."""
    table = Table('"?" against', "by", "Kendall tau", "top-10 overlap", "same first", "moves less", box=None)
    forms = {"?": "?", ".": ".", "nothing": ""}
    rows: dict[tuple[str, str], list[tuple[float, float, bool]]] = {}
    for record in queries:
        base = record.query.rstrip(" ?.!")
        nearest = {form: steps.retrieve(base + end, steps.store.count_rows()) for form, end in forms.items()}
        candidates = sorted({passage for found in nearest.values() for passage in list(found)[:depth]})
        orders = {
            "bi-encoder": {form: {i: found[i] for i in candidates} for form, found in nearest.items()},
            "cross-encoder": {form: steps.rerank(base + end, candidates) for form, end in forms.items()},
        }
        for form in (".", "nothing"):
            for step, scores in orders.items():
                ours, theirs = scores["?"], scores[form]
                tau = rank_agreement(np.asarray(list(ours.values())), np.asarray(list(theirs.values())))
                top, other = best(ours, KEPT), best(theirs, KEPT)
                rows.setdefault((form, step), []).append((tau, len({*top} & {*other}) / KEPT, top[0] == other[0]))
    for (form, step), values in rows.items():
        tau, overlap, first = np.mean(values, axis=0)
        rival = "cross-encoder" if step == "bi-encoder" else "bi-encoder"
        steadier = sum(mine[0] > its[0] for mine, its in zip(values, rows[form, rival], strict=True))
        of_all = f"{steadier} of {len(values)} queries"
        table.add_row(f'"{form}"' if len(form) == 1 else form, step, f"{tau:.4f}", f"{overlap:.3f}", f"{first:.0%}", of_all)
    out.print(table)


def best(scores: Scores, count: int) -> list[str]:
    """The passages with the highest scores; ties go to the one that comes first."""
    return sorted(scores, key=scores.__getitem__, reverse=True)[:count]


def read_corpus(path: Path | None, queries: Sequence[QueryRecord]) -> list[Passage]:
    """The passages of a file and of the queries' candidate lists, each id once."""
    passages = {passage.id: passage for record in queries for passage in record.passages}
    return list({**passages, **{p.id: p for p in (read_passages(path) if path else [])}}.values())


def bundle_of(path: Path, source: str) -> Path:
    """The bundle; exported of an embedded model where nothing is there yet."""
    if not path.exists():
        export_bundle(source, path, progress=TerminalProgress())
    return path


def main() -> None:
    """Read the arguments, fill the store, and show all that can be shown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help='JSON lines of {"id", "text"}')
    parser.add_argument("--run", type=Path, help='JSON lines of {"qid", "query", "passages": [{"id", "text"}]}')
    parser.add_argument("--qrels", type=Path, help="judgements in TREC format")
    parser.add_argument("-q", "--query", help="show this one")
    parser.add_argument("--queries", type=int, help="take only so many of --run")
    parser.add_argument("--depths", default="10,20,50,100", help="numbers of passages to rerank; the largest is retrieved")
    parser.add_argument("--embedder", type=Path, default=Path("embedder-bundle"))
    parser.add_argument("--reranker", type=Path, default=Path("demo-bundle"))
    parser.add_argument("--store", type=Path, default=Path("build/passages"), help="the folder of databases")
    arguments = parser.parse_args()
    if arguments.corpus is None and arguments.run is None:
        arguments.corpus, arguments.run, arguments.qrels = (
            HERE / name for name in ("corpus.jsonl", "questions.jsonl", "qrels.txt")
        )
        arguments.query = arguments.query or "Which city was destroyed by an earthquake in the eighteenth century?"
    everything = read_run(arguments.run) if arguments.run else []
    corpus, queries = read_corpus(arguments.corpus, everything), everything[: arguments.queries]
    depths = sorted(int(depth) for depth in arguments.depths.split(","))
    with (
        Embedder.load(bundle_of(arguments.embedder, "demo-embedder")) as embedder,
        Reranker.load(bundle_of(arguments.reranker, "demo")) as reranker,
    ):
        steps = TwoSteps(embedder, open_store(arguments.store, embedder, corpus), reranker)
        out.print(f"bi-encoder {embedder.precision}, cross-encoder {reranker.precision} on {reranker.session.provider}\n")
        if arguments.query:
            show(steps, arguments.query, depths[-1])
            out.print()
        if arguments.qrels:
            measure(steps, queries, arguments.qrels, depths)
        if queries:
            punctuate(steps, queries, depths[-1])


if __name__ == "__main__":
    main()
