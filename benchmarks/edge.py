"""What a small machine pays: installed size, cold start and peak memory of the runtime, beside fastembed and FlashRank.

python benchmarks/edge.py [--runs 9]

Each is installed into an empty virtual environment: `pip install ".[cpu]"` of this tree, and the peers as for
benchmarks/peers.py, with the demo model's weights. Fresh processes take turns; the clock runs from the first line of Python
to the first score. Processor time is of the whole process, the interpreter's start included; unlike the clock it means the
same on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from common import ROOT, demo_bundle, demo_checkpoint
from peers.contenders import Contender, peers
from peers.environments import CACHE, prepare_environment, prepare_models
from peers.process import ContenderError

from crossforge.profiles import Precision
from crossforge.runtime.bundle import Bundle
from crossforge.runtime.machine import inspect_machine

CHILD = """
import json, sys, time
start = time.perf_counter()
sys.path.insert(0, sys.argv[4])
from worker import LOADERS
score = LOADERS[sys.argv[1]](json.loads(sys.argv[2]), int(sys.argv[3]))
query = "How many people live in Berlin?"
score([(query, "Berlin has 3.7 million inhabitants."), (query, "Berlin has museums.")])
seconds = time.perf_counter() - start
status = dict(line.split(":", 1) for line in open("/proc/self/status"))  # ru_maxrss would be the parent's
peak_mb = int(status["VmHWM"].split()[0]) * 1024 / 1e6
print(json.dumps({"cold_start_s": seconds, "processor_s": time.process_time(), "peak_mb": peak_mb}))
"""
OF_EVERY_ENVIRONMENT = ("pip", "setuptools", "pkg_resources", "_distutils_hack", "distutils-precedence")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--bundle", type=Path, help="of the demo model; made anew by default")
    arguments = parser.parse_args()
    machine, bundle = inspect_machine(), Bundle.open((arguments.bundle or demo_bundle()).resolve())
    models, missing = prepare_models(demo_checkpoint(), machine.instruction_sets)
    if missing:
        raise SystemExit(missing)
    own = Contender(
        name="crossforge int8",
        kind="crossforge",
        options={"model": str(bundle.path), "provider": "cpu", "precision": Precision.INT8},
    )
    field = [own, *(peer for peer in peers(models, demo_checkpoint()) if peer.kind in ("fastembed", "flashrank"))]
    pythons: dict[str, str] = {}
    for contender in field:
        try:
            pythons[contender.name] = own_environment() if contender is own else prepare_environment(contender.kind, CACHE)
        except ContenderError as error:
            print(f"{contender.name}: {error}", file=sys.stderr)
    field = [contender for contender in field if contender.name in pythons]
    samples: dict[str, list[dict[str, float]]] = {contender.name: [] for contender in field}
    for _ in range(arguments.runs + 1):
        for contender in field:
            samples[contender.name].append(start(pythons[contender.name], contender, machine.usable_cores))
    print(f"\n{machine.cpu}, {machine.usable_cores} cores; median (min-max) of {arguments.runs} fresh processes in turns\n")
    print("| | installed MB | cold start s | processor s | peak MB |")
    print("|---|---|---|---|---|")
    for name, runs in samples.items():
        counted = runs[1:]  # the first reads from disk
        cold, processor, peak = ([run[key] for run in counted] for key in ("cold_start_s", "processor_s", "peak_mb"))
        size = installed_bytes(Path(pythons[name])) / 1e6
        print(f"| {name} | {size:.0f} | {spread(cold, '.2f')} | {spread(processor, '.2f')} | {spread(peak, '.0f')} |")


def own_environment() -> str:
    """The runtime of this tree, installed as a user would install it."""
    folder = CACHE / "runtime"
    python = folder / "bin" / "python"
    commands = [] if python.is_file() else [[sys.executable, "-m", "venv", str(folder)]]
    pip = [
        str(python),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "-c",
        str(ROOT / "constraints.txt"),
    ]
    commands += [[*pip, f"{ROOT}[cpu]"], [*pip, "--force-reinstall", "--no-deps", str(ROOT)]]
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ContenderError(f"not installed: {done.stderr.strip().splitlines()[-1]}")
    return str(python)


def installed_bytes(python: Path) -> int:
    """Bytes of everything that was installed into an environment, without what every environment has."""
    (packages,) = (python.parent.parent / "lib").glob("python*/site-packages")
    return sum(
        path.stat().st_size
        for path in packages.rglob("*")
        if path.is_file() and not path.relative_to(packages).parts[0].startswith(OF_EVERY_ENVIRONMENT)
    )


def start(python: str, contender: Contender, threads: int) -> dict[str, float]:
    worker = Path(__file__).parent / "peers"
    command = [python, "-c", CHILD, contender.kind, json.dumps(contender.options), str(threads), str(worker)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd="/")
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def spread(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


if __name__ == "__main__":
    main()
