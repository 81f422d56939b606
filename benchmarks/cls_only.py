"""What computing the last layer for one row is worth: fp32 and int8, with the pass and without, in turns.

The fewer layers a model has, the more of it the last one is, so the embedded model runs as it is and cut to its first two.

python benchmarks/cls_only.py [--queries 3] [--rounds 5]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from common import demo_bundle, demo_checkpoint, workload
from cpu_settings import Setting, runner
from onnx import ModelProto

from crossforge.export.onnx import export_onnx, save_onnx
from crossforge.export.passes import quantize_int8_dynamic
from crossforge.export.passes.cls_only import keep_first_row
from crossforge.export.source import load_source
from crossforge.runtime.bundle import TOKENIZER_NAME, Bundle
from crossforge.runtime.machine import usable_cores
from crossforge.runtime.tokenization import EncodedPairs, PairTokenizer

LAYERS = (6, 2)
DEFAULT = Setting("default")
"""What the runtime does."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    bundle, work = Bundle.open(demo_bundle()), workload(arguments.queries)
    manifest = bundle.manifest
    tokenizer = PairTokenizer.from_file(bundle.path / TOKENIZER_NAME, manifest.pair_template, manifest.truncation)
    pairs = tokenizer.encode_pairs(work.pairs)
    print(f"\n{work.name}: {len(pairs)} pairs, {arguments.rounds} rounds in turns, {usable_cores()} cores")
    with tempfile.TemporaryDirectory() as folder:
        for layers in LAYERS:
            compare(layers, bundle, pairs, Path(folder), arguments.rounds)


def compare(layers: int, bundle: Bundle, pairs: EncodedPairs, folder: Path, rounds: int) -> None:
    runs = {name: make_run(name, model, bundle, pairs, folder / f"{layers}") for name, model in variants(layers).items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    print(f"\n| {f'{layers} layers':<20} | pairs/s | ratio |\n|{'-' * 22}|{'-' * 9}|{'-' * 7}|")
    for name, times in seconds.items():
        baseline = statistics.median(seconds[name.partition(",")[0]])
        median = statistics.median(times)
        print(f"| {name:<20} | {len(pairs) / median:<7.0f} | {baseline / median:<5.2f} |")


def variants(layers: int) -> dict[str, ModelProto]:
    """Graphs of the embedded model's first layers, each precision before its rewritten form."""
    model = load_source(str(demo_checkpoint())).model
    model.bert.encoder.layer = model.bert.encoder.layer[:layers]
    model.config.num_hidden_layers = layers
    fp32 = export_onnx(model)
    one_row = keep_first_row(fp32)
    print(f"{layers} layers: {'; '.join(one_row.notes)}")
    return {
        "fp32": fp32,
        "fp32, one row": one_row.model,
        "int8": quantize_int8_dynamic(fp32).model,
        "int8, one row": quantize_int8_dynamic(one_row.model).model,
    }


def make_run(name: str, model: ModelProto, bundle: Bundle, pairs: EncodedPairs, folder: Path) -> Callable[[], object]:
    path = folder / f"{name}.onnx"
    save_onnx(model, path)
    return runner(bundle, path, DEFAULT, pairs)


if __name__ == "__main__":
    main()
