"""Texts a second of Embedder.encode and of SentenceTransformer.encode, on the same texts, in turns.

python benchmarks/embedder.py [--texts 500] [--rounds 5] [--threads 2] [--batch-size 32]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from common import ROOT, workload
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from crossforge.export.demo import find_demo_base
from crossforge.export.exporter import export_bundle
from crossforge.profiles import MANIFEST_NAME, DeploymentProfile, Precision
from crossforge.runtime import Embedder
from crossforge.runtime.bundle import Bundle
from crossforge.runtime.console import TerminalProgress

BUNDLE = ROOT / "build" / "bench-embedder"
Encode = Callable[[list[str]], NDArray[np.float32]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    newest = max(path.stat().st_mtime for root in ("profiles", "runtime", "export") for path in (ROOT / root).rglob("*.py"))
    if not (BUNDLE / MANIFEST_NAME).is_file() or (BUNDLE / MANIFEST_NAME).stat().st_mtime < newest:
        export_bundle("demo-embedder", BUNDLE, progress=TerminalProgress())
    work = workload()
    texts = list(dict.fromkeys(passage for _, passage in work.pairs))[: arguments.texts]
    peer = SentenceTransformer(str(find_demo_base()), device="cpu")
    embedders = {
        f"crossforge {precision}": Embedder.load(
            BUNDLE,
            provider="cpu",
            precision=precision,
            deployment=DeploymentProfile(workers=arguments.threads),
        )
        for precision in (Precision.FP32, Precision.INT8)
    }
    contenders: dict[str, Encode] = {
        "sentence-transformers, torch fp32": lambda some: peer.encode(some, batch_size=arguments.batch_size),
        **{name: lambda some, embedder=embedder: embedder.embed(some).vectors for name, embedder in embedders.items()},
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    vectors = {name: encode(texts) for name, encode in contenders.items()}  # the first turn is not counted
    for _ in range(arguments.rounds):
        for name, encode in contenders.items():
            start = time.perf_counter()
            encode(texts)
            seconds[name].append(time.perf_counter() - start)
    first, *_ = contenders
    print(f"\n{len(texts)} texts of {work.name}, {arguments.threads} threads, {arguments.rounds} rounds in turns")
    print(f"{'':<36}{'texts/s':>9}{'ratio':>8}{'least cosine to the first':>28}")
    for name in contenders:
        ratios = [base / own for base, own in zip(seconds[first], seconds[name], strict=True)]
        cosine = (vectors[first] * vectors[name]).sum(axis=1).min()
        rate = len(texts) / statistics.median(seconds[name])
        print(f"{name:<36}{rate:9.0f}{statistics.median(ratios):8.2f}{cosine:28.6f}")
    for precision, variant in Bundle.open(BUNDLE).manifest.variants.items():
        print(f"{precision}: Kendall tau {variant.parity.kendall_tau:.4f} against {variant.parity.reference}")
    for embedder in embedders.values():
        embedder.close()


if __name__ == "__main__":
    main()
