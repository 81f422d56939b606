"""What a cost model is worth: how well it predicts, and requests cut by it beside requests cut without, in turns.

python benchmarks/cost_model.py [--candidates 10 20 50] [--rounds 25] [--bundle FOLDER]
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from common import demo_bundle

from crossforge.profiles import DEFAULT_WORKLOAD, CostModel, ExecutionProvider, Precision
from crossforge.runtime.bundle import Bundle
from crossforge.runtime.machine import usable_cores
from crossforge.runtime.profiling.bench import LocalBench
from crossforge.runtime.profiling.cost import fit_cost
from crossforge.runtime.profiling.search import compare
from crossforge.runtime.profiling.settings import Setting
from crossforge.runtime.scoring import CPU_BUDGET_TOKENS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, nargs="+", default=[10, 20, 50])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--bundle", type=Path, help="instead of the demo model")
    arguments = parser.parse_args()
    bundle = Bundle.open(arguments.bundle or demo_bundle())
    print("\n| variant | held-out median error | candidates | ms without | ms with | times as fast | 95 % |")
    print("|---|---|---|---|---|---|---|")
    for precision in (name for name in (Precision.FP32, Precision.INT8) if name in bundle.manifest.variants):
        setting = Setting(
            provider=ExecutionProvider.CPU,
            precision=precision,
            workers=usable_cores(),
            budget_tokens=CPU_BUDGET_TOKENS,
        )
        with LocalBench(bundle, DEFAULT_WORKLOAD) as bench:
            fitted = fit_cost(bench.cost_samples(setting, budget_s=30))
        for count in arguments.candidates:
            with LocalBench(bundle, replace(DEFAULT_WORKLOAD, candidates={count: 1})) as bench:

                def measure(cost: CostModel | None, setting: Setting = setting, bench: LocalBench = bench) -> float:
                    return bench.latency_ms(setting, cost)

                found = compare(None, fitted.model, measure, rounds=arguments.rounds, budget_s=60)
            print(
                f"| {precision} | {fitted.held_out_median_error:.1%} | {count} | {found.baseline_ms:.0f} "
                f"| {found.contender_ms:.0f} | {found.ratio:.2f} | {found.low:.2f} to {found.high:.2f} |"
            )


if __name__ == "__main__":
    main()
