"""What a pair costs in bulk, from a thousand pairs to a million: `crossforge bulk --ray` on two actors, and in one process.

    python benchmarks/bulk.py                          # about ten minutes on two quiet cores
    python benchmarks/bulk.py --sizes 1000 10000       # a short one

Pairs are made of the words of the built-in texts, 100 passages a query and some 60 tokens a pair, none twice. Two models
score them: the demo model, up to --most-demo pairs, and `one-layer`, a random BERT of one layer and 64 channels that is made
here for this alone. With it a million pairs take minutes, and what is not the model (reading, tokens, Ray) weighs the most.

Every run is a process of its own, and so are its peaks of memory. The table and the picture go into docs/distributed.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import ROOT, demo_bundle
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from crossforge.export.demo import materialize_demo_model
from crossforge.export.exporter import ExportOptions, export_bundle
from crossforge.export.gates import OPEN_GATE
from crossforge.export.pairs import builtin_pairs
from crossforge.profiles import MANIFEST_NAME, Precision
from crossforge.runtime.machine import inspect_machine

BUILD = ROOT / "build" / "bulk"
PAGE = ROOT / "docs" / "distributed.md"
PICTURE = ROOT / "docs" / "img" / "bulk.png"
SHARD_PAIRS = 500
PASSAGES = 100


def one_layer_bundle() -> Path:
    """A model of one layer with random weights and the demo model's tokenizer."""
    checkpoint, bundle = BUILD / "one-layer-checkpoint", BUILD / "one-layer"
    if not (bundle / MANIFEST_NAME).is_file():
        torch.manual_seed(0)
        tokenizer = AutoTokenizer.from_pretrained(materialize_demo_model())
        shape = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128}
        model = BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), num_labels=1, **shape))
        torch.nn.init.normal_(model.classifier.weight)  # logits that differ, or the export takes it for a broken model
        model.save_pretrained(checkpoint)
        tokenizer.save_pretrained(checkpoint)
        options = ExportOptions(precisions=(Precision.FP32,))
        export_bundle(str(checkpoint), bundle, replace(options, gates={**options.gates, Precision.FP32: OPEN_GATE}))
    return bundle


def write_pairs(size: int) -> Path:
    path = BUILD / f"pairs-{size}.jsonl"
    if path.is_file():
        return path
    draw = random.Random(size)
    words = sorted({word for record in builtin_pairs() for passage in record.passages for word in passage.text.split()})
    writing = path.with_suffix(".writing")
    with writing.open("w", encoding="utf-8") as file:
        for number in range(size):
            if number % PASSAGES == 0:
                query = " ".join(draw.choices(words, k=6))
            text = f"{number} " + " ".join(draw.choices(words, k=draw.randint(15, 55)))
            file.write(json.dumps({"id": number, "query": query, "passage": text}) + "\n")
    writing.rename(path)
    return path


def run(model: str, bundle: Path, size: int, *, ray: bool) -> dict[str, Any]:
    source, output = write_pairs(size), BUILD / "out.jsonl"
    output.unlink(missing_ok=True)
    command = [sys.executable, "-c", "from crossforge.export.main import main; main()", "bulk"]
    options = ["--shard-pairs", str(SHARD_PAIRS), "--json", *(["--ray", "--address", "local"] if ray else [])]
    start = time.perf_counter()
    done = subprocess.run([*command, bundle, source, output, *options], stdout=subprocess.PIPE, text=True, check=True)
    wall_s = time.perf_counter() - start
    row = {"model": model, "where": "Ray" if ray else "one process", "wall_s": wall_s, **json.loads(done.stdout)}
    print(json.dumps(row), flush=True)
    return row


COLUMNS = (
    "model",
    "where",
    "pairs",
    "whole command, s",
    "pairs/s while scoring",
    "ms a pair, of the workers",
    "padding",
    "driver, MB",
    "largest worker, MB",
)


def table_of(rows: list[dict[str, Any]]) -> str:
    lines = [COLUMNS, ("---",) * len(COLUMNS), *map(cells_of, rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def cells_of(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{row['model']} {row['precision']}",
        row["where"],
        f"{row['pairs']:,}",
        f"{row['wall_s']:.1f}",
        f"{row['pairs_per_s']:,.0f}",
        f"{1e3 * row['worker_seconds'] / row['pairs']:.3f}",
        f"{row['padding_waste']:.1%}",
        f"{row['driver_peak_mb']:,.0f}",
        f"{row['worker_peak_mb']:,.0f}" if row["where"] == "Ray" else "the same",
    )


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    import altair as alt

    points = [
        {"pairs": row["pairs"], "ms": 1e3 * value / row["pairs"], "model": f"{row['model']}, {row['where']}", "time": name}
        for row in rows
        for name, value in (("solid: of the workers", row["worker_seconds"]), ("dashed: whole command", row["wall_s"]))
    ]
    log = alt.Scale(type="log")
    chart = (
        alt.Chart(alt.Data(values=points))
        .mark_line(point=True)
        .encode(
            x=alt.X("pairs:Q", scale=log, title="pairs"),
            y=alt.Y("ms:Q", scale=log, title="ms a pair"),
            color=alt.Color("model:N", title=None),
            strokeDash=alt.StrokeDash("time:N", title=None, sort="descending", legend=alt.Legend(symbolOpacity=0)),
        )
        .properties(width=560, height=300, title="Cost of a pair, by the size of the job")
    )
    path.parent.mkdir(exist_ok=True)
    chart.save(str(path), ppi=144)


def write_page(rows: list[dict[str, Any]], page: Path, picture: Path) -> None:
    machine = inspect_machine()
    where = f"{machine.cpu}, {machine.usable_cores} cores, Python {platform.python_version()}, shards of {SHARD_PAIRS} pairs"
    image = f"![What a pair costs, by the size of the job](img/{picture.name})"
    figures = f"<!-- figures -->\n{where}:\n\n{table_of(rows)}\n\n{image}\n<!-- /figures -->"
    text = page.read_text(encoding="utf-8")
    replaced, count = re.subn(r"<!-- figures -->.*<!-- /figures -->", lambda _: figures, text, flags=re.DOTALL)
    assert count == 1, f"{page} has no place for the figures"
    page.write_text(replaced, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--most-demo", type=int, default=10_000, help="pairs that the demo model scores at most")
    parser.add_argument("--picture", type=Path, default=PICTURE)
    parser.add_argument("--page", type=Path, default=PAGE)
    arguments = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    bundles = {"one-layer": one_layer_bundle(), "demo": demo_bundle()}
    rows = [
        run(model, bundle, size, ray=ray)
        for model, bundle in bundles.items()
        for ray in (True, False)
        for size in arguments.sizes
        if model != "demo" or size <= arguments.most_demo
    ]
    draw(rows, arguments.picture)
    write_page(rows, arguments.page, arguments.picture)
    print(table_of(rows))


if __name__ == "__main__":
    main()
