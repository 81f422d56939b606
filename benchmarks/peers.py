"""Every variant beside its peers on the same pairs, in turns: in bulk, on long pairs, for one query; ranking; roofline.

    python benchmarks/peers.py [--rounds 5] [--queries 30] [--only NAME,NAME] [--json FILE] [--plot FILE]

The peers are what a user of sentence-transformers, fastembed or FlashRank would run, with the demo model's own weights. Each
contender lives in a process of its own (in a virtual environment of its own where its packages conflict with ours), has the
same number of threads and the same cores, and is asked in turns: A B C, A B C. Times are its own, without the pipe. TREC
DL19 queries are dealt out to the rounds: a run scores each once, and tau and nDCG@10 come from the scores that were timed.
No round starts that would end after `--minutes`. What cannot be installed or fails gets a row that says why. `--prepare`
only installs and exports.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from common import ROOT, demo_bundle_of_all, demo_checkpoint, workload
from peers.contenders import REFERENCE, Contender, ours, peers
from peers.environments import CACHE, prepare_environment, prepare_models
from peers.process import ContenderError, Process
from peers.report import draw, markdown
from peers.summary import GATE_NDCG, GATE_TAU, Samples, summarize
from peers.workloads import Bulk, bulk, latency_queries, long_records, slices

from crossforge.export.quality import read_qrels
from crossforge.profiles import ExecutionProvider, Precision
from crossforge.runtime.bundle import TOKENIZER_NAME, Bundle
from crossforge.runtime.machine import inspect_machine, usable_cores
from crossforge.runtime.profiling.ceiling import count_operations, measure_ceiling
from crossforge.runtime.tokenization import PairTokenizer

SOURCE_ROOTS = [ROOT / name for name in ("export", "runtime", "profiles")]
PAUSE_S = 0.05
"""Between contenders: threads that spin for work go to sleep."""


def main() -> None:
    arguments = parse()
    machine, bundle = inspect_machine(), Bundle.open(arguments.bundle or demo_bundle_of_all())
    checkpoint = demo_checkpoint()
    models, no_models = prepare_models(checkpoint, machine.instruction_sets)
    field = [*peers(models, checkpoint), *ours(bundle, machine)]
    chosen = [c for c in field if c.name == REFERENCE or any(word in c.name for word in arguments.only.split(","))]
    samples = {c.name: Samples(contender=c) for c in chosen}
    processes = start(chosen, samples, models, no_models, threads=arguments.threads, loaded=not arguments.prepare)
    if arguments.prepare:
        print("\n".join(f"{s.contender.name}: {s.failure or 'ready'}" for s in samples.values()))
        return
    try:
        run(arguments, bundle, samples, processes)
    finally:
        for process in processes.values():
            process.close()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--queries", type=int, default=30, help="of TREC DL19, 100 passages each, dealt out to the rounds")
    parser.add_argument("--long-pairs", type=int, default=20, help="of 300 to 512 tokens, each round; 0 leaves them out")
    parser.add_argument("--latency", default="20,100", help="candidates of a single request, with commas; blank for none")
    parser.add_argument("--latency-seconds", type=float, default=1.5, help="for each contender and size, each round")
    parser.add_argument("--only", default="", help="contenders whose name has one of these words, with commas")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--bundle", type=Path, help="of the demo model; made anew by default")
    parser.add_argument("--json", type=Path, default=ROOT / "build" / "peers.json", help="raw samples and figures")
    parser.add_argument("--plot", type=Path, default=ROOT / "build" / "peers.png")
    parser.add_argument(
        "--minutes", type=float, default=11.0, help="after which no round may end; the first one always runs"
    )
    parser.add_argument("--prepare", action="store_true", help="install and export, and measure nothing")
    return parser.parse_args()


def start(
    chosen: Sequence[Contender], samples: Mapping[str, Samples], models: Path, no_models: str, *, threads: int, loaded: bool
) -> dict[str, Process]:
    """Install what is missing and load everyone; a failure is noted with its reason."""
    processes: dict[str, Process] = {}
    for contender in chosen:
        try:
            if no_models and str(models) in contender.options["model"]:
                raise ContenderError(no_models)
            python = sys.executable if contender.is_ours else prepare_environment(contender.kind, CACHE)
            if not loaded:
                continue
            print(f"Loading {contender.name}", file=sys.stderr)
            process = Process(contender, python, threads=threads, paths=SOURCE_ROOTS if contender.is_ours else [])
        except ContenderError as error:
            samples[contender.name].failure = str(error)
            continue
        processes[contender.name] = process
        samples[contender.name].load_s = process.load_s
    return processes


def run(arguments: argparse.Namespace, bundle: Bundle, samples: dict[str, Samples], processes: dict[str, Process]) -> None:
    manifest = bundle.manifest
    tokenizer = PairTokenizer.from_file(bundle.path / TOKENIZER_NAME, manifest.pair_template, manifest.truncation)
    work = workload(arguments.queries)
    rounds = [bulk(records, tokenizer) for records in slices(work.records, arguments.rounds)]
    long = None
    if arguments.long_pairs:
        long = bulk(long_records(work.records, tokenizer, arguments.long_pairs), tokenizer)
    latency = {
        count: [[r.query, [p.text for p in r.passages]] for r in latency_queries(work.records, tokenizer, count)]
        for count in (int(word) for word in arguments.latency.split(",") if word)
    }

    def each(number: int, what: str, ask: Callable[[Samples, Process], None]) -> None:
        """Ask every contender in turn; another one begins each round."""
        names = list(processes)
        for i in range(len(names)):
            name = names[(i + number) % len(names)]
            time.sleep(PAUSE_S)
            try:
                ask(samples[name], processes[name])
            except ContenderError as error:
                samples[name].failure = f"failed at {what}: {error}"
                processes.pop(name).close()

    def warm_up(_: Samples, process: Process) -> None:
        process.ask(pairs=rounds[0].pairs[:64])
        if long is not None:
            process.ask(pairs=long.pairs[:4])

    def on_long(own: Samples, process: Process) -> None:
        assert long is not None
        own.long_s.append(process.ask(pairs=long.pairs)["seconds"])

    began = time.monotonic()
    each(0, "warm-up", warm_up)
    ceilings: list[float] = []
    for number, asked in enumerate(rounds):
        spent = time.monotonic() - began
        if number and spent + spent / number > 60 * arguments.minutes:
            print(
                f"Stopped after {number} rounds: the next would end after --minutes {arguments.minutes:g}", file=sys.stderr
            )
            rounds = rounds[:number]
            break
        print(f"Round {number + 1} of {len(rounds)}", file=sys.stderr)
        ceilings.append(measure_ceiling(ExecutionProvider.CPU, Precision.INT8, workers=arguments.threads) or float("nan"))

        def in_bulk(own: Samples, process: Process, asked: Bulk = asked) -> None:
            answer = process.ask(pairs=asked.pairs)
            own.bulk_s.append(answer["seconds"])
            own.scores.append(answer["scores"])

        each(number, "pairs in bulk", in_bulk)
        if long is not None:
            each(number, "long pairs", on_long)
        for count, queries in latency.items():

            def one_query(own: Samples, process: Process, count: int = count, queries: object = queries) -> None:
                answer = process.ask(queries=queries, least_s=arguments.latency_seconds)
                own.latency_s.setdefault(count, []).extend(answer["samples_s"])

            each(number, f"top {count}", one_query)
    operations = [needed_operations(bundle, asked.lengths) for asked in rounds]
    judgements = None if work.qrels is None else read_qrels(work.qrels)
    rows = summarize(samples, rounds, long, judgements=judgements, ceilings=ceilings, operations=operations)
    missing = {own.contender.name: own.failure for own in samples.values() if own.failure}
    total = sum(len(asked.lengths) for asked in rounds)
    tokens = float(np.concatenate([asked.lengths for asked in rounds]).mean())
    machine = inspect_machine()
    setting = (
        f"{work.name}: {total} pairs, {tokens:.0f} tokens on average, {len(rounds)} rounds in turns, "
        f"{arguments.threads} threads each, {machine.cpu}"
    )
    print(f"\n{setting}\n")
    print(markdown(rows, missing, list(latency)))
    ceiling = np.median(ceilings) / 1e9
    print(f"\nThe gate: Kendall tau of {GATE_TAU} or more and nDCG@10 lower by no more than {GATE_NDCG}.")
    print(f"The int8 ceiling: {ceiling:.0f} GOP/s in one large product; the share counts the integer products that a model")
    print("with one row in its last layer needs.")
    document = {
        "setting": setting,
        "machine": {"cpu": machine.cpu, "instruction_sets": machine.instruction_sets, "python": platform.python_version()},
        "rows": [dataclasses.asdict(row) for row in rows],
        "missing": missing,
        "ceilings": ceilings,
        "needed_operations": operations,
        "samples": {
            name: {key: value for key, value in vars(own).items() if key not in ("contender", "scores")}
            for name, own in samples.items()
        },
    }
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(document, indent=1), encoding="utf-8")
    draw(rows, arguments.plot, title="Reranking speed beside its peers", subtitle=setting)
    print(f"\nRaw samples: {arguments.json}; plot: {arguments.plot}")


def needed_operations(bundle: Bundle, lengths: np.ndarray) -> float:
    """Operations of the products with weights for pairs of such lengths; those of the attention are left out.

    They grow linearly with a pair's tokens and the attention's with their square, which tells them apart in three counts.
    """
    variant = bundle.manifest.variants[Precision.FP32]
    points = (64, 128, 256)
    counts = count_operations(bundle.path / variant.path, bundle.manifest, points)
    _, linear, constant = np.polyfit(points, [counts[point] for point in points], 2)
    return float((linear * lengths.astype(np.float64) + constant).sum())


if __name__ == "__main__":
    main()
