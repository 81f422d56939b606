"""Logits and latency on a GPU: a bundle's engines and CUDA variants against torch fp16, by batch and length.

Needs a bundle, and of the packages only what each contender needs: what is not installed is left out and named.

python benchmarks/gpu.py BUNDLE [--rounds 50] [--batches 1,8,32,128] [--lengths 32,64,128,256,512] [--out gpu.md]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from crossforge.profiles import CrossforgeError, DeploymentProfile, ExecutionProvider, GpuOptions, Precision
from crossforge.runtime import Reranker
from crossforge.runtime.machine import inspect_machine
from crossforge.runtime.sessions.tensorrt.graphs import CAPTURE_AFTER

Batch = dict[str, np.ndarray]
Run = Callable[[Batch], np.ndarray]
"""Takes inputs in the host's memory and gives logits there: what a service waits for."""
TENSORRT, CUDA = ExecutionProvider.TENSORRT, ExecutionProvider.CUDA
CONTENDERS = (
    (TENSORRT, Precision.FP16, GpuOptions()),
    (TENSORRT, Precision.FP16, GpuOptions(cuda_graphs=True)),
    (TENSORRT, Precision.INT8_QDQ, GpuOptions()),
    (CUDA, Precision.FP16, GpuOptions()),
    (CUDA, Precision.FP16, GpuOptions(io_binding=True)),
    (CUDA, Precision.FP16_CUDA, GpuOptions()),
    (CUDA, Precision.FP16_CUDA, GpuOptions(io_binding=True)),
    (CUDA, Precision.FP32, GpuOptions()),
)
"""Each switch beside the same without it, so that one run says whether it pays."""
WARM_UP = CAPTURE_AFTER + 2
"""Runs of a shape before it is timed: after them a CUDA graph is recorded and replayed."""

COLUMNS = ("batch x length", "contender", "p50 ms", "p99 ms", "pairs/s", "largest logit diff.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--batches", default="1,8,32,128")
    parser.add_argument("--lengths", default="32,64,128,256,512")
    parser.add_argument("--checkpoint", type=Path, help="the model in PyTorch's form, for the torch contender")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    machine = inspect_machine()
    lines = [
        f"{', '.join(machine.gpus) or machine.cpu}; {', '.join(machine.tensorrt_packages + machine.onnxruntime_packages)}"
    ]
    with Reranker.load(arguments.bundle, provider="cpu", precision="fp32") as reference:
        names = reference.session.input_names
        runs = dict(contenders(arguments.bundle, arguments.checkpoint, lines))
        lines += [
            "",
            "| batch x length | contender | p50 ms | p99 ms | pairs/s | largest logit diff. |",
            "|---|---|---|---|---|---|",
        ]
        for rows, length in shapes(arguments.batches, arguments.lengths):
            batch = make_batch(rows, length, names)
            expected = reference.session.run(batch)
            for name, milliseconds, logits in measure(runs, batch, arguments.rounds):
                p50, p99 = np.percentile(milliseconds, (50, 99))
                worst = float(np.abs(logits - expected).max())
                lines.append(
                    f"| {rows} x {length} | {name} | {p50:.2f} | {p99:.2f} | {rows / p50 * 1e3:.0f} | {worst:.2g} |"
                )
    text = "\n".join(lines)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


def contenders(bundle: Path, checkpoint: Path | None, lines: list[str]) -> Iterator[tuple[str, Run]]:
    for provider, precision, gpu in CONTENDERS:
        switches = gpu.describe(provider)
        name = f"{provider} {precision}" + (f", {switches}" if switches else "")
        try:
            reranker = Reranker.load(
                bundle, provider=provider, precision=precision, strict=True, deployment=DeploymentProfile(gpu=gpu)
            )
        except CrossforgeError as error:
            lines.append(f"left out: {name}: {error}")
            continue
        yield f"crossforge {name}", reranker.session.run
    if checkpoint is not None:
        with suppress(ImportError):
            yield "torch fp16, SDPA", torch_run(checkpoint)


def torch_run(checkpoint: Path) -> Run:
    import torch
    from transformers import AutoModelForSequenceClassification

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint, attn_implementation="sdpa")
    model = model.eval().to(device, torch.float16 if device == "cuda" else torch.float32)

    def run(batch: Batch) -> np.ndarray:
        with torch.inference_mode():
            inputs = {name: torch.from_numpy(ids).to(device, non_blocking=True) for name, ids in batch.items()}
            return model(**inputs).logits.float().cpu().numpy()  # waits for the device

    return run


def measure(runs: dict[str, Run], batch: Batch, rounds: int) -> Iterator[tuple[str, list[float], np.ndarray]]:
    """Contenders in turns, after a warm-up. Every run ends with its logits in the host's memory, so the device is done."""
    milliseconds: dict[str, list[float]] = {name: [] for name in runs}
    logits = {name: [run(batch) for _ in range(WARM_UP)][-1] for name, run in runs.items()}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter_ns()
            run(batch)
            milliseconds[name].append((time.perf_counter_ns() - start) / 1e6)
    for name in runs:
        yield name, milliseconds[name], logits[name]


def shapes(batches: str, lengths: str) -> Iterator[tuple[int, int]]:
    for length in map(int, lengths.split(",")):
        for rows in map(int, batches.split(",")):
            yield rows, length


def make_batch(rows: int, length: int, names: tuple[str, ...]) -> Batch:
    """Random tokens in rows of full length: the most work that a shape can be."""
    generator = np.random.default_rng(0)
    inputs = {
        "input_ids": generator.integers(1000, 20_000, (rows, length)),
        "attention_mask": np.ones((rows, length), np.int64),
        "token_type_ids": np.tile((np.arange(length) > length // 4).astype(np.int64), (rows, 1)),
    }
    return {name: inputs[name] for name in names}


if __name__ == "__main__":
    main()
