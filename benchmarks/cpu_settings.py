"""What the CPU session's settings are worth: each against the default, in turns, on the int8 and the fp32 variant.

python benchmarks/cpu_settings.py [--queries 3] [--rounds 5]
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from common import demo_bundle, workload

from crossforge.profiles import ExecutionProvider, Precision
from crossforge.runtime.bundle import TOKENIZER_NAME, Bundle
from crossforge.runtime.machine import usable_cores
from crossforge.runtime.scoring import CPU_BUDGET_TOKENS, compute_logits
from crossforge.runtime.tokenization import EncodedPairs, PairTokenizer


@dataclass(frozen=True)
class Setting:
    """One way to run a model file; the defaults are what the runtime does."""

    name: str
    threads: int = 1
    workers: int = usable_cores()
    budget_tokens: int = CPU_BUDGET_TOKENS
    fuse_skip_layer_norm: bool = False
    spin: bool = True
    arena: bool = True
    pattern: bool = True


SETTINGS = (
    Setting(f"default: a worker a core, {CPU_BUDGET_TOKENS} tokens"),
    Setting("one worker, all threads", threads=usable_cores(), workers=1),
    Setting("one worker, all threads, no spinning", threads=usable_cores(), workers=1, spin=False),
    Setting("SkipLayerNormalization fused", fuse_skip_layer_norm=True),
    Setting("no memory arena", arena=False),
    Setting("no memory pattern", pattern=False),
    *(Setting(f"{tokens:,} tokens", budget_tokens=tokens) for tokens in (128, 256, 512, 1024, 2048)),
)


class PlainSession:
    """The runtime's session with its settings laid open."""

    provider = ExecutionProvider.CPU

    def __init__(self, path: Path, setting: Setting) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = setting.threads
        options.enable_cpu_mem_arena = setting.arena
        options.enable_mem_pattern = setting.pattern
        if not setting.spin:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        disabled = [] if setting.fuse_skip_layer_norm else ["SkipLayerNormFusion"]
        self._session = ort.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled
        )
        self.input_names = tuple(value.name for value in self._session.get_inputs())

    def run(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        return self._session.run(None, dict(batch))[0]

    def close(self) -> None:
        pass


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
    for precision in (Precision.FP32, Precision.INT8):
        variant = manifest.variants[precision]
        runs = {setting.name: runner(bundle, bundle.path / variant.path, setting, pairs) for setting in SETTINGS}
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for run in runs.values():
            run()
        for _ in range(arguments.rounds):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - start)
        baseline = statistics.median(seconds[SETTINGS[0].name])
        print(f"\n| {precision:<40} | pairs/s | ratio |\n|{'-' * 42}|{'-' * 9}|{'-' * 7}|")
        for name, times in seconds.items():
            median = statistics.median(times)
            print(f"| {name:<40} | {len(pairs) / median:<7.0f} | {baseline / median:<5.2f} |")


def runner(bundle: Bundle, path: Path, setting: Setting, pairs: EncodedPairs) -> Callable[[], object]:
    session, manifest = PlainSession(path, setting), bundle.manifest
    executor = ThreadPoolExecutor(setting.workers) if setting.workers > 1 else None
    return lambda: compute_logits(
        session,
        pairs,
        template=manifest.pair_template,
        pad_token_id=manifest.pad_token_id,
        labels=len(manifest.scoring.labels),
        budget_tokens=setting.budget_tokens,
        workers=setting.workers,
        executor=executor,
    )


if __name__ == "__main__":
    main()
