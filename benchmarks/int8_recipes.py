"""What each recipe, and each step of the default one, is worth on TREC DL19: ranking on all pairs, speed in turns on some.

python benchmarks/int8_recipes.py [--queries 43] [--rounds 5]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from common import demo_bundle, scores_by_query, workload
from onnx import ModelProto
from onnxruntime.quantization import QuantType, quantize_dynamic

from crossforge.export.calibration import calibration_batches, collect_statistics, read_calibration
from crossforge.export.dynamic_quantization import prepare_int8
from crossforge.export.gates import OPEN_GATE
from crossforge.export.onnx import export_onnx
from crossforge.export.options import RangeMethod
from crossforge.export.parity import compare_logits
from crossforge.export.passes import (
    convert_fp16,
    find_overflows,
    fuse_for_cpu,
    keep_first_row,
    quantize_int8_dynamic,
    quantize_int8_static,
    smooth,
)
from crossforge.export.passes.int8_static import ActivationType
from crossforge.export.passes.products import find_encoder_products
from crossforge.export.passes.rounding import REDUCED_LEVELS
from crossforge.export.quality import compare_quality, measure_quality, read_qrels
from crossforge.export.ranges import collect_ranges
from crossforge.export.source import load_source
from crossforge.export.static_quantization import prepare_int8_static
from crossforge.runtime.batching import Batch
from crossforge.runtime.bundle import TOKENIZER_NAME, Bundle
from crossforge.runtime.machine import usable_cores
from crossforge.runtime.scoring import compute_logits
from crossforge.runtime.sessions.ort import OnnxRuntimeSession
from crossforge.runtime.tokenization import EncodedPairs, PairTokenizer

SPEED_PAIRS = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    bundle, work = Bundle.open(demo_bundle()), workload(arguments.queries)
    if work.qrels is None:
        raise SystemExit("TREC DL19 is not at hand")
    judgements = read_qrels(work.qrels)
    manifest = bundle.manifest
    tokenizer = PairTokenizer.from_file(bundle.path / TOKENIZER_NAME, manifest.pair_template, manifest.truncation)
    pairs, few = tokenizer.encode_pairs(work.pairs), tokenizer.encode_pairs(work.pairs[:SPEED_PAIRS])
    fp32 = keep_first_row(export_onnx(load_source("demo").model)).model
    batches = calibration_batches(
        read_calibration(None), tokenizer, pad_token_id=manifest.pad_token_id, input_names=manifest.input_names
    )
    static = partial(static_int8, fp32, batches)
    recipes: dict[str, Callable[[], ModelProto]] = {
        "fp32": lambda: fp32,
        "fp16": lambda: convert_fp16(fp32, keep_fp32_nodes=find_overflows(fp32, batches)).model,
        "int8, `quantize_dynamic`": lambda: by_tensor(fp32),
        "int8, one scale a token": lambda: quantize_int8_dynamic(fp32).model,
        "+ smoothed": lambda: quantize_int8_dynamic(smoothed(fp32, batches)).model,
        "**+ rounded by output error**": lambda: prepare_int8(fp32, batches).apply().model,
        "the same, 63 levels": lambda: prepare_int8(fp32, batches, levels=REDUCED_LEVELS).apply().model,
        "int8 static, minmax, to nearest": lambda: plain_static(fp32, batches),
        "int8 static, minmax": lambda: static(ActivationType.UINT8, RangeMethod.MINMAX),
        "int8 static, percentile": lambda: static(ActivationType.UINT8, RangeMethod.PERCENTILE),
        "int8 static, entropy": lambda: static(ActivationType.UINT8, RangeMethod.ENTROPY),
        "int8_qdq, minmax": lambda: static(ActivationType.INT8, RangeMethod.MINMAX),
    }
    with tempfile.TemporaryDirectory() as folder:
        runs: dict[str, Callable[[EncodedPairs], np.ndarray]] = {}
        sizes: dict[str, float] = {}
        for number, (name, make) in enumerate(recipes.items()):
            path = Path(folder) / f"{number}.onnx"
            model = make()
            onnx.save(model if name.startswith(("fp", "int8_qdq")) else fuse_for_cpu(model).model, str(path))
            runs[name] = runner(path, bundle)
            sizes[name] = path.stat().st_size / 1e6
        logits = {name: run(pairs) for name, run in runs.items()}
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(arguments.rounds):
            for name, run in runs.items():
                start = time.perf_counter()
                run(few)
                seconds[name].append(time.perf_counter() - start)
    print(f"\n{len(work.records)} queries, {len(work.pairs)} pairs; speed on {len(few)} in turns\n")
    print("| recipe | nDCG@10 | p | Kendall tau | top-10 overlap | mean logit diff. | MB | pairs/s | to fp32 |")
    print("|---|---|---|---|---|---|---|---|---|")
    qualities = {
        name: measure_quality(scores_by_query(values[:, 0], work.records), judgements) for name, values in logits.items()
    }
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name, values in logits.items():
        parity = compare_logits(logits["fp32"], values, work.records, ranking_label=0, name="fp32", gate=OPEN_GATE)
        quality = qualities[name]
        print(
            f"| {name} | {quality.ndcg_at_10:.4f} | {compare_quality(quality, qualities['fp32']).p_value:.2f} "
            f"| {parity.kendall_tau:.4f} | {parity.top10_overlap:.3f} | {parity.mean_abs_diff:.3f} | {sizes[name]:.0f} "
            f"| {len(few) / medians[name]:.0f} | {medians['fp32'] / medians[name]:.2f} |"
        )


def by_tensor(model: ModelProto) -> ModelProto:
    """The usual recipe: ONNX Runtime's helper, weights signed and by channel."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "a.onnx", Path(folder) / "b.onnx"
        onnx.save(model, str(source))
        quantize_dynamic(source, target, per_channel=True, weight_type=QuantType.QInt8)
        return onnx.load(str(target))


def static_int8(model: ModelProto, batches: list[Batch], activations: ActivationType, method: RangeMethod) -> ModelProto:
    return prepare_int8_static(model, batches, activations=activations, method=method).apply().model


def plain_static(model: ModelProto, batches: list[Batch]) -> ModelProto:
    """As calibration tools do it by default: neither smoothed nor rounded by output error."""
    ranges = collect_ranges(model, [product.activation for product in find_encoder_products(model)], batches)
    return quantize_int8_static(model, ranges, activations=ActivationType.UINT8).model


def smoothed(model: ModelProto, batches: list[Batch]) -> ModelProto:
    widths = {product.activation: product.width for product in find_encoder_products(model)}
    for statistics_of_some in collect_statistics(model, widths, batches):
        model = smooth(model, statistics_of_some).model
    return model


def runner(path: Path, bundle: Bundle) -> Callable[[EncodedPairs], np.ndarray]:
    manifest, session, workers = bundle.manifest, OnnxRuntimeSession(path), usable_cores()
    executor = ThreadPoolExecutor(workers)
    return lambda pairs: compute_logits(
        session,
        pairs,
        template=manifest.pair_template,
        pad_token_id=manifest.pad_token_id,
        labels=1,
        workers=workers,
        executor=executor,
    )[0]


if __name__ == "__main__":
    main()
