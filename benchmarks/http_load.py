"""A light load generator: requests as ready bytes over kept connections, so that the servers beside it get the cores."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

TIMEOUT_S = 600.0


@dataclass
class Answer:
    status: int
    seconds: float
    """Since it was due."""
    retry_after_s: int | None = None


@dataclass
class Load:
    """What one turn came to."""

    answers: list[Answer] = field(default_factory=list)
    lost: int = 0
    """Neither answered nor refused."""
    seconds: float = 0.0
    generator_cpu_s: float = 0.0
    server_cpu_s: float = 0.0

    def latencies_ms(self, status: int = 200) -> np.ndarray:
        return np.asarray([answer.seconds * 1e3 for answer in self.answers if answer.status == status])

    def count(self, status: int) -> int:
        return sum(answer.status == status for answer in self.answers)

    @property
    def per_s(self) -> float:
        return self.count(200) / self.seconds


class Client:
    """Kept connections to one server."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    def encode(self, path: str, body: object) -> bytes:
        """A request as bytes."""
        raw = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        return f"{head}content-length: {len(raw)}\r\n\r\n".encode() + raw

    async def ask(self, request: bytes, load: Load, due: float) -> None:
        """Send one request and note its answer; latency counts from when it was due."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", self._port)
                writer.write(request)
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
                await reader.readexactly(int(headers["content-length"]))
        except (OSError, EOFError, TimeoutError, KeyError):
            load.lost += 1
            return
        retry = headers.get("retry-after")
        load.answers.append(
            Answer(int(head[9:12]), time.perf_counter() - due, retry_after_s=None if retry is None else int(retry))
        )
        if headers.get("connection") == "close":
            writer.close()
        else:
            self._idle.append((reader, writer))

    def close(self) -> None:
        for _, writer in self._idle:
            writer.close()


async def closed_loop(port: int, path: str, bodies: Sequence[object], *, at_once: int) -> Load:
    """Send all bodies, so many at a time; each client sends its next when it has its answer."""
    client, load = Client(port), Load()
    waiting = iter([client.encode(path, body) for body in bodies])
    start, cpu = time.perf_counter(), time.process_time()

    async def work() -> None:
        for request in waiting:
            await client.ask(request, load, time.perf_counter())

    await asyncio.gather(*(work() for _ in range(at_once)))
    load.seconds, load.generator_cpu_s = time.perf_counter() - start, time.process_time() - cpu
    client.close()
    return load


async def open_loop(port: int, path: str, bodies: Sequence[object], *, per_s: float, seconds: float, seed: int = 0) -> Load:
    """Send at a Poisson process' times, whatever the server does. Latency counts from when a request was due.

    The process is taken with as many arrivals as it has on average, at uniform times. Left to chance, a number of arrivals
    such as 360 has a standard deviation of 19, and the rate is not the one that was asked for.
    """
    client, load = Client(port), Load()
    ready = [client.encode(path, body) for body in bodies]
    times = np.sort(np.random.default_rng(seed).uniform(0, seconds, round(per_s * seconds))).tolist()
    start, cpu = time.perf_counter(), time.process_time()
    tasks = []
    for i, due in enumerate(times):
        await asyncio.sleep(max(0.0, start + due - time.perf_counter()))
        tasks.append(asyncio.create_task(client.ask(ready[i % len(ready)], load, start + due)))
    await asyncio.gather(*tasks)
    load.seconds, load.generator_cpu_s = time.perf_counter() - start, time.process_time() - cpu
    client.close()
    return load
