"""Requests a second over HTTP: crossforge with and without micro-batching, and a peer, in turns on one machine.

    python benchmarks/serving.py [--peer infinity=.venv-infinity/bin/infinity_emb] [--rounds 4] [--passages 20,5,1]
    python benchmarks/serving.py --overload     # twice the rate that it can answer
    python benchmarks/serving.py --soak         # ten thousand requests, and the memory

Every server runs the embedded model in float32 (crossforge's in ``--precision``), in a process of its own, on the same cores
as the load generator, which says how much of them it took. In each round every server gets the same requests, 32 at a time,
while the others are stopped with SIGSTOP. The peer is infinity where ``--peer`` says where it is, else FastAPI around
sentence-transformers (plain_app.py):

    python -m venv .venv-infinity
    .venv-infinity/bin/pip install torch && .venv-infinity/bin/pip install "infinity-emb[torch,server]"

"no micro-batching" is ``crossforge serve --no-micro-batching``: each request is computed by itself, on all cores, one after
another.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from common import ROOT, demo_bundle, demo_checkpoint, workload
from http_load import Load, closed_loop, open_loop

from crossforge.runtime.machine import inspect_machine

TIMEOUT = ("--timeout", "600")
"""Time enough, as the peers have no limit."""
OVERLOAD_QUEUE_TOKENS = 32_768
START_S = 180


@dataclass(frozen=True)
class Server:
    name: str
    port: int
    path: str
    field: str
    """What the passages are called."""
    pid: int

    def bodies(self, requests: Sequence[tuple[str, list[str]]]) -> list[dict[str, object]]:
        extra = {"truncate": True} if self.field == "texts" else {}
        return [{"query": query, self.field: passages, **extra} for query, passages in requests]

    def cpu_s(self) -> float:
        """Processor time since its start; a loaded machine stretches it far less than the clock's."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_mb(self) -> float:
        return int(Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@contextmanager
def crossforge_server(name: str, precision: str, *options: str, bundle: Path | None = None) -> Iterator[Server]:
    command = [
        sys.executable,
        "-c",
        "from crossforge.export.main import main; main()",
        "serve",
        str(bundle or demo_bundle()),
    ]
    options = ("--precision", precision, *TIMEOUT, *options)
    with started(name, lambda port: [*command, *options, "--port", str(port)], "/rerank", "texts") as server:
        yield server


@contextmanager
def peer_server(peer: str | None) -> Iterator[Server]:
    checkpoint = str(demo_checkpoint())
    if peer is None:
        script = str(ROOT / "benchmarks" / "plain_app.py")
        command = [sys.executable, script, checkpoint]
        with started(
            "FastAPI + sentence-transformers", lambda port: [*command, str(port)], "/rerank", "documents"
        ) as server:
            yield server
        return
    name, _, executable = peer.partition("=")
    options = ["v2", "--model-id", checkpoint, "--engine", "torch", "--device", "cpu", "--dtype", "float32"]
    options += ["--no-bettertransformer", "--log-level", "error", "--port"]
    with started(name, lambda port: [executable, *options, str(port)], "/rerank", "documents") as server:
        yield server


@contextmanager
def started(name: str, command: Callable[[int], list[str]], path: str, field: str) -> Iterator[Server]:
    """Start a server, and wait until it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    roots = os.pathsep.join(str(ROOT / root) for root in ("export", "runtime", "profiles"))
    environment = {**os.environ, "PYTHONPATH": roots, "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    log = ROOT / "build" / f"bench-{name.replace(' ', '-')}.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("w") as output:
        process = subprocess.Popen(command(port), env=environment, stdout=output, stderr=output)
    try:
        give_up = time.monotonic() + START_S
        while not answers(port):
            if process.poll() is not None or time.monotonic() > give_up:
                raise SystemExit(f"{name} did not start; see {log}")
            time.sleep(0.1)
        yield Server(name, port, path, field, process.pid)
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return answer.status == 200
    except (OSError, urllib.error.URLError):
        return False


def draw_requests(count: int, passages: int, seed: int = 0) -> list[tuple[str, list[str]]]:
    """Queries with their first passages, as a first stage ranks them, in any order."""
    records = workload().records
    drawn = [records[i % len(records)] for i in range(count)]
    random.Random(seed).shuffle(drawn)
    return [(record.query, [passage.text for passage in record.passages[:passages]]) for record in drawn]


def run(server: Server, requests: Sequence[tuple[str, list[str]]], at_once: int) -> Load:
    return asyncio.run(closed_loop(server.port, server.path, server.bodies(requests), at_once=at_once))


def compare(arguments: argparse.Namespace) -> dict[str, object]:
    """All servers in turns, for each number of passages."""
    with ExitStack() as stack:
        servers = [
            stack.enter_context(crossforge_server("crossforge", arguments.precision)),
            stack.enter_context(
                crossforge_server("crossforge, no micro-batching", arguments.precision, "--no-micro-batching")
            ),
            *([] if arguments.no_peer else [stack.enter_context(peer_server(arguments.peer))]),
        ]
        for server in servers:
            run(server, draw_requests(16, 5), 4)  # warm-up
            os.kill(server.pid, signal.SIGSTOP)
        workloads = {
            passages: draw_requests(max(arguments.concurrency, arguments.pairs // passages), passages)
            for passages in map(int, arguments.passages.split(","))
        }
        loads: dict[tuple[int, str], list[Load]] = {}
        for number in range(arguments.rounds):
            for passages, requests in workloads.items():
                # Each round begins with another server, so that none always follows the same one.
                for server in servers[number % len(servers) :] + servers[: number % len(servers)]:
                    os.kill(server.pid, signal.SIGCONT)
                    cpu_s = server.cpu_s()
                    load = run(server, requests, arguments.concurrency)
                    load.server_cpu_s = server.cpu_s() - cpu_s
                    os.kill(server.pid, signal.SIGSTOP)
                    if load.count(200) != len(requests):
                        raise SystemExit(f"{server.name} answered {load.count(200)} of {len(requests)} requests")
                    loads.setdefault((passages, server.name), []).append(load)
                    print(f"round {number + 1}: {passages:2} passages, {server.name}: {load.per_s:.1f}/s", file=sys.stderr)
    rows = []
    for passages in workloads:
        rates = {server.name: [load.per_s for load in loads[passages, server.name]] for server in servers}
        for server in servers:
            mine = loads[passages, server.name]
            latencies = np.concatenate([load.latencies_ms() for load in mine])
            ratios = [ours / theirs for ours, theirs in zip(rates[servers[0].name], rates[server.name], strict=True)]
            rows.append(
                {
                    "passages": passages,
                    "server": server.name,
                    "requests_per_s": statistics.median(rates[server.name]),
                    "pairs_per_s": passages * statistics.median(rates[server.name]),
                    "p50_ms": float(np.percentile(latencies, 50)),
                    "p99_ms": float(np.percentile(latencies, 99)),
                    "cpu_ms_per_pair": 1e3 * sum(load.server_cpu_s for load in mine) / (passages * len(latencies)),
                    "crossforge_is_faster_by": statistics.median(ratios),
                    "ratio_min": min(ratios),
                    "ratio_max": max(ratios),
                    "generator_cores": sum(load.generator_cpu_s for load in mine) / sum(load.seconds for load in mine),
                }
            )
    return {"rounds": arguments.rounds, "concurrency": arguments.concurrency, "rows": rows}


def overload(arguments: argparse.Namespace) -> dict[str, object]:
    """What it can answer, and then twice that, whatever it says."""
    passages = int(arguments.passages.split(",")[0])
    requests = draw_requests(max(64, arguments.pairs // passages), passages)
    with crossforge_server("crossforge", arguments.precision, "--max-queue-tokens", str(OVERLOAD_QUEUE_TOKENS)) as server:
        run(server, requests[:16], 4)
        unloaded = run(server, requests[:64], 1)
        # As many at a time as fill half of the queue: requests that are refused would leave too few to measure by.
        tokens_per_request = metric(server, "crossforge_tokens_total") / (16 + len(requests[:64]))
        at_once = max(2, min(arguments.concurrency, int(OVERLOAD_QUEUE_TOKENS / 2 / tokens_per_request)))
        capacity = run(server, requests, at_once)
        if capacity.count(200) != len(requests):
            raise SystemExit(f"{capacity.count(200)} of {len(requests)} requests were answered: no measure of the capacity")
        load = asyncio.run(
            open_loop(server.port, server.path, server.bodies(requests), per_s=2 * capacity.per_s, seconds=arguments.seconds)
        )
        tokens = metric(server, "crossforge_tokens_total"), metric(server, "crossforge_request_passages_sum")
    tokens_per_pair = tokens[0] / tokens[1]
    bound_ms = 1e3 * OVERLOAD_QUEUE_TOKENS / (tokens_per_pair * passages * capacity.per_s)
    unloaded_p99, accepted = float(np.percentile(unloaded.latencies_ms(), 99)), load.latencies_ms()
    retries = [answer.retry_after_s for answer in load.answers if answer.retry_after_s is not None]
    return {
        "passages": passages,
        "capacity_per_s": capacity.per_s,
        "offered_per_s": (len(load.answers) + load.lost) / arguments.seconds,
        "offered_of_capacity": (len(load.answers) + load.lost) / arguments.seconds / capacity.per_s,
        "answered": load.count(200),
        "refused": load.count(429),
        "other": len(load.answers) - load.count(200) - load.count(429),
        "lost": load.lost,
        "answered_per_s": load.per_s,
        "unloaded_p99_ms": unloaded_p99,
        "queue_bound_ms": bound_ms,
        "accepted_p50_ms": float(np.percentile(accepted, 50)),
        "accepted_p99_ms": float(np.percentile(accepted, 99)),
        "allowed_p99_ms": 2 * unloaded_p99 + bound_ms,
        "retry_after_s": [min(retries), max(retries)] if retries else None,
        "queue_bound_s": math.ceil(bound_ms / 1e3),
    }


def metric(server: Server, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + "{"))


def soak(arguments: argparse.Namespace) -> dict[str, object]:
    """Requests of one passage each, a tenth at a time, and the memory after each tenth."""
    requests = draw_requests(arguments.requests // 20, 1)
    with crossforge_server("crossforge", arguments.precision) as server:
        run(server, draw_requests(64, 20), arguments.concurrency)  # what a service has seen after a minute
        curve = [(0, server.resident_mb())]
        for part in range(20):
            load = run(server, requests, arguments.concurrency)
            if load.count(200) != len(requests):
                raise SystemExit(f"answered {load.count(200)} of {len(requests)} requests")
            curve.append(((part + 1) * len(requests), server.resident_mb()))
    return {"resident_mb": curve, "growth_mb": curve[-1][1] - curve[0][1]}


def tell(result: dict[str, object]) -> None:
    """The table that docs/serving.md takes."""
    if "rows" not in result:
        for key, value in result.items():
            print(f"{key:20} {value:.1f}" if isinstance(value, float) else f"{key:20} {value}")
        return
    heads = [
        "passages",
        "server",
        "requests/s",
        "pairs/s",
        "p50, ms",
        "p99, ms",
        "CPU, ms a pair",
        "crossforge is faster by",
    ]
    print(f"| {' | '.join(heads)} (min-max) |")
    print("|---|---|---|---|---|---|---|---|")
    for row in result["rows"]:  # type: ignore[attr-defined]
        ratio = f"{row['crossforge_is_faster_by']:.2f} ({row['ratio_min']:.2f}-{row['ratio_max']:.2f})"
        print(
            f"| {row['passages']} | {row['server']} | {row['requests_per_s']:.1f} | {row['pairs_per_s']:.0f} "
            f"| {row['p50_ms']:,.0f} | {row['p99_ms']:,.0f} | {row['cpu_ms_per_pair']:.1f} | {ratio} |"
        )
    print(f"\nThe load generator took {max(row['generator_cores'] for row in result['rows']):.2f} cores at most.")  # type: ignore[attr-defined]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="infinity=PATH of its executable")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--precision", default="fp32", help="crossforge's; the peer runs fp32")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--passages", default="20,5,1", help="of each request")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=1_280, help="of each server's turn, about")
    parser.add_argument("--overload", action="store_true")
    parser.add_argument("--seconds", type=float, default=60.0, help="of overload")
    parser.add_argument("--soak", action="store_true")
    parser.add_argument("--requests", type=int, default=10_000, help="of the soak")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bench-serving.json")
    arguments = parser.parse_args()
    # Whoever stops the benchmark stops its servers too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    result = overload(arguments) if arguments.overload else soak(arguments) if arguments.soak else compare(arguments)
    machine = inspect_machine()
    result = {"cpu": machine.cpu, "cores": machine.usable_cores, **result}
    arguments.output.parent.mkdir(exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"{machine.cpu}, {machine.usable_cores} cores; also in {arguments.output}\n")
    tell(result)


if __name__ == "__main__":
    main()
