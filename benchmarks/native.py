"""The native engine against ONNX Runtime's int8 and sentence-transformers: the same pairs, in turns.

Beside each rate stands the share of the integer ceiling: what ONNX Runtime's MatMulInteger reaches on one large product with
as many threads. Operations are those of the linear layers, with the last layer computed for one row.

python benchmarks/native.py [--queries 2] [--rounds 7] [--workers 2] [--budgets 384,1024] [--kernels avx2] [--torch]
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from common import demo_bundle, demo_checkpoint, workload

from crossforge.export.quantize import quantize_bundle
from crossforge.profiles import ExecutionProvider, Precision
from crossforge.runtime.bundle import TOKENIZER_NAME, Bundle
from crossforge.runtime.console import TerminalProgress
from crossforge.runtime.loading import open_model
from crossforge.runtime.machine import usable_cores
from crossforge.runtime.profiling.ceiling import measure_ceiling
from crossforge.runtime.scoring import compute_logits
from crossforge.runtime.sessions.native import NativeSession
from crossforge.runtime.sessions.native.encoder_file import EncoderShape, read_encoder
from crossforge.runtime.sessions.native.library import build_library
from crossforge.runtime.sessions.protocol import Session
from crossforge.runtime.tokenization import EncodedPairs, PairTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, default=usable_cores())
    parser.add_argument("--budgets", default="384,1024")
    parser.add_argument("--kernels", default="", help="the native engine's, instead of the fastest that runs here")
    parser.add_argument("--torch", action="store_true", help="also sentence-transformers, with as many threads")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    build_library()
    bundle = Bundle.open(demo_bundle())
    if Precision.INT8_NATIVE not in bundle.manifest.variants:
        quantize_bundle(bundle.path, [Precision.INT8_NATIVE], progress=TerminalProgress())
        bundle = Bundle.open(bundle.path)
    work, manifest, workers = workload(arguments.queries), bundle.manifest, arguments.workers
    tokenizer = PairTokenizer.from_file(bundle.path / TOKENIZER_NAME, manifest.pair_template, manifest.truncation)
    pairs = tokenizer.encode_pairs(work.pairs)
    operations = count_operations(read_encoder(bundle.path / Precision.INT8_NATIVE.path).shape, pairs)
    with ThreadPoolExecutor(workers) as pool:
        contenders: dict[str, Callable[[], object]] = {}
        if arguments.torch:
            contenders["sentence-transformers, fp32"] = torch_contender(work.pairs, workers)
        for budget in (int(text) for text in arguments.budgets.split(",")):
            sessions: dict[str, Session] = {
                "int8": open_model(bundle.path / Precision.INT8.path, ExecutionProvider.CPU, labels=1)
            }
            for kernels in arguments.kernels.split(","):
                native = NativeSession(bundle.path / Precision.INT8_NATIVE.path, kernels=kernels or None)
                sessions[f"int8_native ({native.kernels})"] = native
            for name, session in sessions.items():

                def run(session=session, budget=budget) -> object:
                    return compute_logits(
                        session,
                        pairs,
                        template=manifest.pair_template,
                        pad_token_id=manifest.pad_token_id,
                        labels=1,
                        budget_tokens=budget,
                        workers=workers,
                        executor=pool if workers > 1 else None,
                    )

                contenders[f"{name}, {budget} tokens a batch"] = run
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        ceilings = []
        for run in contenders.values():
            run()
        for _ in range(arguments.rounds):
            ceilings.append(measure_ceiling(ExecutionProvider.CPU, Precision.INT8, workers=workers) or np.nan)
            for name, run in contenders.items():
                start = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - start)
    ceiling = statistics.median(ceilings)
    print(f"\n{work.name}: {len(pairs)} pairs of {pairs.lengths.mean():.0f} tokens, {workers} threads, in turns")
    print(f"Ceiling {ceiling / 1e9:.0f} GOP/s; {operations / len(pairs) / 1e9:.2f} GOP a pair\n")
    print("| | pairs/s | fastest round | ratio | share of the ceiling |\n|---|---|---|---|---|")
    slowest = next(iter(seconds))
    for name, times in seconds.items():
        rate = len(pairs) / statistics.median(times)
        ratio = statistics.median(base / own for base, own in zip(seconds[slowest], times, strict=True))
        share = operations / statistics.median(times) / ceiling
        print(f"| {name} | {rate:.0f} | {len(pairs) / min(times):.0f} | {ratio:.2f} | {share:.0%} |")


def count_operations(shape: EncoderShape, pairs: EncodedPairs) -> float:
    """Multiplications and additions of the encoder's linear layers."""
    square = shape.hidden**2
    layer = 4 * square + 2 * shape.hidden * shape.intermediate
    tokens = float(pairs.lengths.sum())
    return 2 * (tokens * ((shape.layers - 1) * layer + 2 * square) + len(pairs) * (layer - 2 * square))


def torch_contender(pairs: list[tuple[str, str]], threads: int) -> Callable[[], object]:
    import torch
    from sentence_transformers import CrossEncoder

    torch.set_num_threads(threads)
    model = CrossEncoder(str(demo_checkpoint()), device="cpu")
    return lambda: model.predict(pairs, batch_size=32, show_progress_bar=False)


if __name__ == "__main__":
    main()
