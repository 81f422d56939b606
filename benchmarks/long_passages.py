"""nDCG@10 on long passages: cut to what the model reads, and split into windows.

Each candidate of TREC DL19 stands somewhere among passages of other queries, so that what is judged is often beyond the
model's limit. What others wrote about other things is not judged, and counts as not relevant.

python benchmarks/long_passages.py [--queries 20] [--candidates 20] [--beside 11]
"""

from __future__ import annotations

import argparse
import random
import warnings

import numpy as np
from common import demo_bundle, scores_by_query, workload

from crossforge.export.quality import measure_quality, read_qrels
from crossforge.runtime import Chunking, Reranker
from crossforge.runtime.records import Passage, QueryRecord

WAYS: dict[str, Chunking | None] = {
    "cut": None,
    'chunk="max"': Chunking(),
    'chunk="max", overlap 0': Chunking(overlap=0.0),
    'chunk="max", windows of 128': Chunking(window_tokens=128),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--beside", type=int, default=11, help="Other passages in each long one.")
    parser.add_argument("--precision", default="auto")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    work = workload()
    if work.qrels is None:
        raise SystemExit("TREC DL19 is not at hand")
    judgements = read_qrels(work.qrels)
    short = [keep_first(record, arguments.candidates) for record in work.records[: arguments.queries]]
    long = lengthen(short, work.records, beside=arguments.beside)
    judged = {record.qid: judgements[record.qid] for record in short}
    with Reranker.load(demo_bundle(), precision=arguments.precision) as reranker:
        tokens = count_tokens(reranker, long)
        print(
            f"{len(long)} queries with {arguments.candidates} passages of {np.median(tokens):.0f} tokens (median); ", end=""
        )
        print(f"at most {reranker.tokenizer.truncation.max_length} a pair; {reranker.precision}\n")
        print("| passages | nDCG@10 | passages cut | windows a passage | tokens computed |")
        print("|---|---|---|---|---|")
        show(reranker, "the judged ones by themselves", None, short, judged)
        for name, chunk in WAYS.items():
            show(reranker, f"long, {name}", chunk, long, judged)


def keep_first(record: QueryRecord, count: int) -> QueryRecord:
    return QueryRecord(qid=record.qid, query=record.query, passages=record.passages[:count])


def lengthen(records: list[QueryRecord], collection: list[QueryRecord], *, beside: int) -> list[QueryRecord]:
    """Put each passage at a random place among others, that were retrieved for other queries."""
    chance = random.Random(0)
    result = []
    for record in records:
        others = [passage.text for other in collection if other.qid != record.qid for passage in other.passages]
        passages = []
        for passage in record.passages:
            texts = chance.sample(others, beside)
            texts.insert(chance.randint(0, beside), passage.text)
            passages.append(Passage(id=passage.id, text=" ".join(texts)))
        result.append(QueryRecord(qid=record.qid, query=record.query, passages=tuple(passages)))
    return result


def count_tokens(reranker: Reranker, records: list[QueryRecord]) -> list[int]:
    texts = [passage.text for record in records for passage in record.passages]
    whole = reranker.tokenizer.encode("?", texts, chunk=Chunking(overlap=0.0))
    assert whole.windows is not None
    return np.add.reduceat([len(ids) for ids in whole.passages], whole.windows.first_row).tolist()


def show(
    reranker: Reranker,
    name: str,
    chunk: Chunking | None,
    records: list[QueryRecord],
    judgements: dict[str, dict[str, int]],
) -> None:
    pairs = [(record.query, passage.text) for record in records for passage in record.passages]
    scored = reranker.score_pairs(pairs, chunk=chunk)
    quality = measure_quality(scores_by_query(reranker.relevance(scored.logits), records), judgements)
    windows = [window.count if window else 1 for window in scored.windows or [None] * len(pairs)]
    print(
        f"| {name} | {quality.ndcg_at_10:.4f} | {scored.truncated.mean():.0%} | {np.mean(windows):.1f} "
        f"| {scored.token_counts.sum():,} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
