"""BCE against LCE, by the number of mined negatives: the recipes of ``examples/train/`` on one split, over several seeds.

python benchmarks/training_losses.py --run run.jsonl --qrels qrels.txt --test-run test.jsonl --test-qrels test-qrels.txt \
    --plot docs/img/training.svg

Every finished training is a line of ``--results``, and is not repeated; so it can be stopped, and more seeds can be added.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from dataclasses import asdict, replace
from pathlib import Path

from common import DL19, ROOT

sys.path.insert(0, str(ROOT / "examples" / "train"))

from mining import Group, Split, cut_query, mine_negatives, split_by_passage
from recipe import EMBEDDED_BASE, JudgedRun, logits_of, similarities_of, write_run
from sentence_transformers import SentenceTransformer
from training import Loss, TrainingOptions, load_base, train

from crossforge.export.quality import measure_quality, read_qrels
from crossforge.runtime.records import read_run

XQUAD = DL19.parent / "xquad-en"
NAMES = {"bce": "BCE", "lce": "LCE"}


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--run", type=Path, default=XQUAD / "bm25-top10.jsonl", help="questions to train on")
    add("--qrels", type=Path, default=XQUAD / "qrels.txt")
    add("--test-run", type=Path, default=DL19 / "bm25-top100.jsonl", help="judged only, never trained on")
    add("--test-qrels", type=Path, default=DL19 / "qrels.txt")
    add("--candidates", type=int, default=20, help="passages a question of --test-run keeps")
    add("--losses", nargs="+", type=Loss, default=list(Loss))
    add("--negatives", nargs="+", type=int, default=[2, 4, 7])
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--epochs", type=float, default=8.0)
    add("--learning-rate", type=float, default=2e-4)
    add("--max-length", type=int, default=128)
    add("--query-max-length", type=int, default=32)
    add("--frozen-layers", type=int, default=0)
    add("--bf16", action="store_true")
    add("--results", type=Path, default=ROOT / "build" / "training" / "results.jsonl")
    add("--plot", type=Path, help="draw what the results hold")
    arguments = parser.parse_args()

    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    split = split_by_passage(read_run(arguments.run), read_qrels(arguments.qrels), fraction=0.25)
    tests = judged_runs(split, arguments)
    shared = {
        name: getattr(arguments, name)
        for name in ("epochs", "learning_rate", "max_length", "query_max_length", "frozen_layers", "bf16")
    }
    grid = [
        TrainingOptions(loss=loss, negatives=negatives, seed=seed, **shared)
        for seed in arguments.seeds
        for negatives in arguments.negatives
        for loss in arguments.losses
    ]
    todo = [options for options in grid if found(options, rows_of(arguments.results)) is None]
    if todo:
        groups = mined_once(split, max(arguments.negatives), arguments.results.parent)
        for options in todo:
            row = trained_and_judged(options, groups, tests, arguments.results.parent)
            with arguments.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)
    rows = [row for options in grid if (row := found(options, rows_of(arguments.results))) is not None]
    baselines = first_stages(tests, arguments.results.parent)
    print_table(rows, baselines)
    if arguments.plot:
        draw(rows, baselines, arguments.plot)


def judged_runs(split: Split, arguments: argparse.Namespace) -> list[JudgedRun]:
    folder = arguments.results.parent
    cut = [replace(record, passages=record.passages[: arguments.candidates]) for record in read_run(arguments.test_run)]
    return [
        JudgedRun(name="held out", run=write_run(split.held_out, folder / "held-out.jsonl"), qrels=arguments.qrels),
        JudgedRun(name="test", run=write_run(cut, folder / "test.jsonl"), qrels=arguments.test_qrels),
    ]


def mined_once(split: Split, negatives: int, folder: Path) -> list[Group]:
    """The n hardest negatives are the first n of more: one mining serves every n."""
    cache = folder / f"mined-{negatives}.json"
    if not cache.is_file():
        groups = mine_negatives(split, SentenceTransformer(EMBEDDED_BASE, device="cpu"), negatives=negatives)
        cache.write_text(json.dumps([asdict(group) for group in groups]))
    return [Group(**{**row, "negatives": tuple(row["negatives"])}) for row in json.loads(cache.read_text())]


def trained_and_judged(
    options: TrainingOptions, groups: list[Group], tests: list[JudgedRun], folder: Path
) -> dict[str, object]:
    model = load_base(EMBEDDED_BASE, options)
    chosen = [
        replace(
            group,
            query=cut_query(group.query, model.tokenizer, max_tokens=options.query_max_length),
            negatives=group.negatives[: options.negatives],
        )
        for group in groups
    ]
    start = time.perf_counter()
    losses = train(model, chosen, options, scratch=folder / "trainer")
    return {
        "options": asdict(options),
        "losses": losses,
        "ndcg@10": {test.name: test.ndcg_at_10(logits_of(model)) for test in tests},
        "minutes": (time.perf_counter() - start) / 60,
    }


def first_stages(tests: list[JudgedRun], folder: Path) -> dict[str, dict[str, float]]:
    """The file's order, the bi-encoder, and cross-encoders with an untrained head."""
    cache = folder / "baselines.json"
    if not cache.is_file():
        bi_encoder = SentenceTransformer(EMBEDDED_BASE, device="cpu")
        untrained = load_base(EMBEDDED_BASE, TrainingOptions(loss=Loss.LCE, max_length=128))
        figures = {
            test.name: {
                "first stage": measure_quality(
                    {r.qid: {p.id: -float(i) for i, p in enumerate(r.passages)} for r in read_run(test.run)},
                    read_qrels(test.qrels),
                ).ndcg_at_10,
                "bi-encoder": test.ndcg_at_10(similarities_of(bi_encoder)),
                "untrained": test.ndcg_at_10(logits_of(untrained)),
            }
            for test in tests
        }
        cache.write_text(json.dumps(figures))
    return dict(json.loads(cache.read_text()))


def rows_of(path: Path) -> list[dict[str, dict[str, object]]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def found(options: TrainingOptions, rows: list[dict[str, dict[str, object]]]) -> dict[str, dict[str, object]] | None:
    return next((row for row in rows if row["options"] == asdict(options)), None)


def print_table(rows: list[dict[str, dict[str, object]]], baselines: dict[str, dict[str, float]]) -> None:
    print("| | held out nDCG@10 | test nDCG@10 | seeds |\n|---|---|---|---|")
    for name in ("first stage", "bi-encoder", "untrained"):
        print(f"| {name} | {baselines['held out'][name]:.3f} | {baselines['test'][name]:.3f} | |")
    grouped = defaultdict(list)
    for row in rows:
        grouped[row["options"]["loss"], row["options"]["negatives"]].append(row["ndcg@10"])
    for (loss, negatives), figures in sorted(grouped.items()):
        cells = [spread([figure[name] for figure in figures]) for name in ("held out", "test")]
        print(f"| {NAMES[loss]}, {negatives} negatives | {' | '.join(cells)} | {len(figures)} |")


def spread(values: list[float]) -> str:
    lowest = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{lowest}"


def draw(rows: list[dict[str, dict[str, object]]], baselines: dict[str, dict[str, float]], path: Path) -> None:
    import altair as alt

    titles = {"held out": "questions whose passages were held out", "test": "the test run, never trained on"}
    panels = []
    for test, title in titles.items():
        points = [
            {
                "loss": NAMES[str(row["options"]["loss"])],
                "negatives": row["options"]["negatives"],
                "nDCG@10": row["ndcg@10"][test],
            }
            for row in rows
        ]
        lines = [{"nDCG@10": value, "name": name} for name, value in baselines[test].items()]
        x = alt.X(
            "negatives:Q",
            title="mined negatives a question",
            axis=alt.Axis(values=[2, 4, 7]),
            scale=alt.Scale(domain=[1, 8]),
        )
        y = alt.Y("nDCG@10:Q", scale=alt.Scale(zero=False, padding=12))
        color = alt.Color("loss:N", title="loss", scale=alt.Scale(domain=["BCE", "LCE"], range=["#c26d3d", "#2f6f9f"]))
        trained = alt.Chart(alt.Data(values=points)).encode(x=x, y=y, color=color)
        means = trained.encode(y=alt.Y("mean(nDCG@10):Q", title="nDCG@10")).mark_line()
        seeds = trained.mark_point(filled=True, size=55, opacity=0.75)
        rules = alt.Chart(alt.Data(values=lines)).encode(y=y).mark_rule(strokeDash=[4, 3], color="#888")
        names = [  # side by side, since two of them can be nearly equal
            alt.Chart(alt.Data(values=[line]))
            .encode(y=y, text="name:N")
            .mark_text(align="left", baseline="bottom", x=4 + 70 * place, color="#666", fontSize=10)
            for place, line in enumerate(lines)
        ]
        panels.append(alt.layer(rules, *names, means, seeds).properties(width=300, height=260, title=title))
    count = len({row["options"]["seed"] for row in rows})
    chart = alt.hconcat(*panels).properties(
        title=alt.TitleParams(
            "Small scale: BCE and LCE by the number of negatives",
            subtitle=f"a point is one training ({count} seed{'s' * (count > 1)}); lines join the means",
            anchor="start",
        )
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    chart.save(str(path))


if __name__ == "__main__":
    main()
