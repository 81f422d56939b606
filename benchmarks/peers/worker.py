"""One contender in a process of its own: loads once, then answers commands on its standard input, a JSON document a line.

Runs in the contender's environment, which has none of crossforge's packages unless the contender is crossforge.

    {"pairs": [[query, passage], ...]}                     -> {"seconds": s, "scores": [...]}    all pairs in one call
    {"queries": [[query, [passage, ...]], ...], "least_s": s} -> {"samples_s": [...]}            a call a query, in turns
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

Pairs = list[tuple[str, str]]
Score = Callable[[Pairs], Sequence[float]]
"""From pairs to scores in their order."""


def sentence_transformers(options: dict[str, Any], threads: int) -> Score:
    import torch
    from sentence_transformers import CrossEncoder

    torch.set_num_threads(threads)
    backend = options.get("backend", "torch")
    settings: dict[str, Any] = {}
    if backend == "torch":
        settings["torch_dtype"] = options["dtype"]
    elif backend == "onnx":
        import onnxruntime

        session = onnxruntime.SessionOptions()
        session.intra_op_num_threads = threads
        settings |= {"file_name": options["file_name"], "provider": "CPUExecutionProvider", "session_options": session}
    else:
        settings |= {"file_name": options["file_name"], "ov_config": {"INFERENCE_NUM_THREADS": str(threads)}}
    model = CrossEncoder(options["model"], device="cpu", max_length=512, backend=backend, model_kwargs=settings)
    return lambda pairs: model.predict(pairs, batch_size=32, show_progress_bar=False).tolist()


def fastembed(options: dict[str, Any], threads: int) -> Score:
    from fastembed.rerank.cross_encoder import TextCrossEncoder

    model = TextCrossEncoder(options["name"], threads=threads, specific_model_path=options["model"])
    return lambda pairs: list(model.rerank_pairs(pairs))


def flashrank(options: dict[str, Any], threads: int) -> Score:  # noqa: ARG001  (it takes no number of threads: one a core)
    from flashrank import Ranker, RerankRequest

    ranker = Ranker(options["name"], cache_dir=options["model"], max_length=512, log_level="ERROR")

    def score(pairs: Pairs) -> list[float]:
        scores = [0.0] * len(pairs)
        start = 0
        while start < len(pairs):  # it takes one query a call
            query, stop = pairs[start][0], start
            while stop < len(pairs) and pairs[stop][0] == query:
                stop += 1
            passages = [{"id": i, "text": pairs[i][1]} for i in range(start, stop)]
            for row in ranker.rerank(RerankRequest(query=query, passages=passages)):
                scores[row["id"]] = float(row["score"])
            start = stop
        return scores

    return score


def crossforge(options: dict[str, Any], threads: int) -> Score:
    from crossforge.profiles import DeploymentProfile
    from crossforge.runtime import Reranker

    reranker = Reranker.load(
        options["model"],
        provider=options["provider"],
        precision=options["precision"],
        strict=True,
        deployment=DeploymentProfile(workers=threads),
    )
    return lambda pairs: reranker.relevance(reranker.score_pairs(pairs).logits).tolist()


LOADERS = {
    "sentence-transformers": sentence_transformers,
    "fastembed": fastembed,
    "flashrank": flashrank,
    "crossforge": crossforge,
}


def answer(score: Score, command: dict[str, Any]) -> dict[str, Any]:
    if "pairs" in command:
        pairs = [(query, passage) for query, passage in command["pairs"]]
        start = time.perf_counter()
        scores = score(pairs)
        return {"seconds": time.perf_counter() - start, "scores": scores}
    calls = [[(query, passage) for passage in passages] for query, passages in command["queries"]]
    samples: list[float] = []
    for call in cycle(calls):
        if len(samples) >= len(calls) and sum(samples) >= command["least_s"]:
            break
        start = time.perf_counter()
        score(call)
        samples.append(time.perf_counter() - start)
    return {"samples_s": samples}


def main() -> None:
    kind, threads, options = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    if hasattr(os, "sched_setaffinity"):  # for engines that ask the machine how many cores there are
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    start = time.perf_counter()
    score = LOADERS[kind](options, threads)
    print(json.dumps({"load_s": time.perf_counter() - start}), file=answers)
    for line in sys.stdin:
        print(json.dumps(answer(score, json.loads(line))), file=answers)


if __name__ == "__main__":
    main()
