"""A real Triton Inference Server on loopback: the binary that the nvidia-pytriton wheel carries, without PyTriton itself."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = Path(os.environ.get("CROSSFORGE_TRITON_VENV", ROOT / ".venv-triton"))
"""The virtual environment that holds the wheel; `make test` makes it."""
START_TIMEOUT_S = 120


@dataclass(frozen=True, kw_only=True)
class TritonServer:
    port: int

    def get(self, path: str) -> tuple[int, Any]:
        return self._send("GET", path)

    def infer(self, model: str, queries: list[str], passages: list[list[str]]) -> tuple[int, Any]:
        """POST a request of the KServe v2 protocol in JSON: one row a query."""

        def tensor(name: str, rows: list[list[str]]) -> dict[str, Any]:
            return {"name": name, "shape": [len(rows), len(rows[0])], "datatype": "BYTES", "data": rows}

        inputs = [tensor("QUERY", [[query] for query in queries]), tensor("PASSAGE", passages)]
        return self._send("POST", f"/v2/models/{model}/infer", {"inputs": inputs})

    def _send(self, method: str, path: str, document: object = None) -> tuple[int, Any]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, None if document is None else json.dumps(document))
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, json.loads(text) if text else None
        finally:
            connection.close()


@contextmanager
def run_triton(repository: Path, workspace: Path) -> Iterator[TritonServer]:
    """Serve a model repository; skips where the server is not installed."""
    wheel = _find_server()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = workspace / "tritonserver.log"
    command = [
        str(wheel / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={wheel / 'backends'}",
        "--http-address=127.0.0.1",
        f"--http-port={port}",
        "--allow-grpc=false",
        "--allow-metrics=false",
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=_environment(), stdout=output, stderr=subprocess.STDOUT)
        try:
            server = TritonServer(port=port)
            _wait(server, process, log)
            yield server
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _find_server() -> Path:
    """The folder of the wheel's server, in which the Python backend has the stub for the environment's Python."""
    found = sorted(ENVIRONMENT.glob("lib/python*/site-packages/pytriton/tritonserver"))
    if not found:
        pytest.skip(
            f"no Triton server: {ENVIRONMENT} has no nvidia-pytriton (`make test` installs it where there is a wheel)"
        )
    wheel = found[0]
    version = wheel.parents[2].name.removeprefix("python")
    stub = wheel / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        pytest.skip(f"nvidia-pytriton has no stub of the Python backend for Python {version}")
    shutil.copy(stub, wheel / "backends" / "python")  # PyTriton would do this in a copy
    return wheel


def _environment() -> dict[str, str]:
    """The stub embeds Python, and looks for its packages beside the first ``python`` on the path; it ignores PYTHONPATH."""
    scripts = ENVIRONMENT / "bin"
    ask = [str(scripts / "python"), "-c", "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"]
    library_folder = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    return {
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, [library_folder, os.environ.get("LD_LIBRARY_PATH")])),
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
    }


def _wait(server: TritonServer, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if server.get("/v2/health/ready")[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.2)
    pytest.fail(f"the Triton server did not become ready (exit status {process.poll()}):\n{log.read_text()[-6000:]}")
