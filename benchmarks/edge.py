"""What a small machine pays: installed size, cold start and peak memory of the runtime, beside fastembed and FlashRank.

python benchmarks/edge.py [--runs 9]

Each is installed into an empty virtual environment: this tree whole and by the lists of examples/deploy/edge, the
peers as for benchmarks/peers.py, with the demo model's weights. Fresh processes take turns. The clock runs from
before the interpreter's start to the first score; Python's compiled files count as installed. Processor time is of
the whole process, and means the same on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from common import ROOT, demo_bundle_of_all, demo_checkpoint
from peers.contenders import Contender, peers
from peers.environments import CACHE, prepare_environment, prepare_models
from peers.process import ContenderError

from crossforge.runtime.bundle import Bundle
from crossforge.runtime.machine import inspect_machine

CHILD = """
import json, sys, time
sys.path.insert(0, sys.argv[4])
from worker import LOADERS
score = LOADERS[sys.argv[1]](json.loads(sys.argv[2]), int(sys.argv[3]))
query = "How many people live in Berlin?"
score([(query, "Berlin has 3.7 million inhabitants."), (query, "Berlin has museums.")])
seconds = time.time() - float(sys.argv[5])
status = dict(line.split(":", 1) for line in open("/proc/self/status"))  # ru_maxrss would be the parent's
peak_mb = int(status["VmHWM"].split()[0]) * 1024 / 1e6
print(json.dumps({"cold_start_s": seconds, "processor_s": time.process_time(), "peak_mb": peak_mb}))
"""
OURS = {  # name: provider, precision, and the list of examples/deploy/edge that it is installed by
    "crossforge int8": ("cpu", "int8", None),
    "crossforge int8, few packages": ("cpu", "int8", "int8.txt"),
    "crossforge int8_native, few packages": ("native", "int8_native", "int8_native.txt"),
}
UNSET = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
OF_EVERY_ENVIRONMENT = ("pip", "setuptools", "pkg_resources", "_distutils_hack", "distutils-precedence")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--bundle", type=Path, help="of the demo model; made anew by default")
    arguments = parser.parse_args()
    machine, bundle = inspect_machine(), Bundle.open((arguments.bundle or demo_bundle_of_all()).resolve())
    models, missing = prepare_models(demo_checkpoint(), machine.instruction_sets)
    if missing:
        raise SystemExit(missing)
    field = [
        Contender(name=name, kind="crossforge", options=options)
        for name, (provider, precision, _) in OURS.items()
        if precision in bundle.manifest.variants
        for options in [{"model": str(bundle.path), "provider": provider, "precision": precision}]
    ]
    field += [peer for peer in peers(models, demo_checkpoint()) if peer.kind in ("fastembed", "flashrank")]
    pythons: dict[str, str] = {}
    for contender in field:
        try:
            pythons[contender.name] = (
                own_environment(OURS[contender.name][2]) if contender.is_ours else prepare_environment(contender.kind, CACHE)
            )
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


def own_environment(listed: str | None) -> str:
    """The runtime of this tree in an environment made anew, installed whole or by a list of examples/deploy/edge."""
    folder = CACHE / "runtime" / (listed or "whole")
    python = folder / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if listed is None:
        install = [*pip, "-c", str(ROOT / "constraints.txt"), f"{ROOT}[cpu]"]
    else:
        install = [*pip, "--no-deps", "--no-compile", "-r", str(ROOT / "examples" / "deploy" / "edge" / listed), str(ROOT)]
    for command in ([sys.executable, "-m", "venv", "--clear", str(folder)], install):
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
    environment = {name: value for name, value in os.environ.items() if name not in UNSET} | {"HF_HUB_OFFLINE": "1"}
    command = [
        python,
        "-c",
        CHILD,
        contender.kind,
        json.dumps(contender.options),
        str(threads),
        str(worker),
        str(time.time()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd="/")
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def spread(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


if __name__ == "__main__":
    main()
