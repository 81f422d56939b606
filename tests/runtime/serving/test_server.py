"""How the service starts and stops, and what it is in front of a real model."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from crossforge.export.cli import app
from crossforge.profiles import DeploymentProfile, Precision
from crossforge.runtime import Reranker
from crossforge.runtime.serving.models import ModelSpec, load_models
from crossforge.runtime.serving.settings import ServiceSettings
from support.builders import write_bundle
from support.serving import gated_service, running
from support.sessions import WAIT_S

ROOT = Path(__file__).resolve().parents[3]
SOURCES = os.pathsep.join(str(ROOT / name) for name in ("export", "runtime", "profiles"))
BODY = {"query": "where is the city", "texts": ["berlin", "a passage"]}


@contextmanager
def served(*arguments: str | Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """``crossforge serve`` in a process of its own: its address, and the process."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from crossforge.export.main import main; main()",
            "serve",
            "--port",
            "0",
            "--json",
            *arguments,
        ],
        env={**os.environ, "PYTHONPATH": SOURCES},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        lines = []
        while (line := process.stdout.readline()) and line != "}\n":
            lines.append(line)
        assert lines, process.communicate()[1]
        yield json.loads("".join(lines) + "}")["url"], process
    finally:
        process.kill()
        process.communicate()


def test_a_service_that_is_told_to_stop_answers_what_it_took_and_takes_nothing_else() -> None:
    with gated_service() as (service, session), ThreadPoolExecutor(1) as caller:
        taken = caller.submit(service.post, "/rerank", BODY)
        session.wait_for_a_batch()
        service.server.handle_exit(signal.SIGTERM, None)
        late = service.post("/v2/rerank", {"model": "tiny", "query": "city", "documents": ["berlin"]})
        ready, alive = service.get("/ready"), service.get("/health")
        session.let_through()
        answer = taken.result(WAIT_S)

    assert answer.status_code == 200
    assert (late.status_code, late.json()["message"]) == (503, "the service is stopping")
    assert late.headers["retry-after"] == "1"
    assert (ready.status_code, alive.status_code) == (503, 200)


def test_what_does_not_end_in_time_is_given_up() -> None:
    with gated_service(drain_timeout_s=0.2) as (service, session), ThreadPoolExecutor(1) as caller:
        taken = caller.submit(service.post, "/rerank", BODY)
        session.wait_for_a_batch()
        service.server.handle_exit(signal.SIGTERM, None)
        # The server drops the connection, or answers in its last moment that it is stopping.
        try:
            status = taken.result(WAIT_S).status_code
        except httpx.RemoteProtocolError:
            status = 503
        session.let_through()

    assert status >= 500


@pytest.mark.slow
def test_the_command_serves_a_bundle_and_ends_well_on_sigterm(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "tiny")
    profile = tmp_path / "deployment.toml"
    profile.write_text(DeploymentProfile(budget_tokens=123, workers=1, precision=Precision.FP32).to_toml(), encoding="utf-8")
    with served(bundle, f"other={bundle}", "--deployment", profile, "--no-playground") as (url, process):
        with httpx.Client(base_url=url, timeout=WAIT_S) as client:
            answer = client.post("/rerank", json={**BODY, "raw_scores": True})
            models = client.get("/v1/models").json()["data"]
            info = client.get("/info").json()
            page = client.get("/")
        process.send_signal(signal.SIGTERM)
        _, logged = process.communicate(timeout=WAIT_S)

    with Reranker.load(bundle) as reranker:
        expected = reranker.score(BODY["query"], BODY["texts"])  # type: ignore[arg-type]
    assert {row["index"]: row["score"] for row in answer.json()} == pytest.approx(
        dict(enumerate(map(float, expected))), abs=1e-6
    )
    assert [model["id"] for model in models] == ["tiny", "other"]
    assert info["max_batch_tokens"] == 123
    assert page.status_code == 404
    assert process.returncode == 0
    assert "Traceback" not in logged
    assert json.loads(logged.splitlines()[-1])["message"] == "stopped"


def test_a_stop_while_the_models_load_ends_the_command_at_once() -> None:
    code = (
        "import signal, sys, crossforge.runtime.serving.models as models;"
        "models.load_models = lambda *_, **__: [print('loading', flush=True), signal.pause(), print('loaded', flush=True)];"
        "from crossforge.export.main import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "serve", "--port", "0", "bundle"],
        env={**os.environ, "PYTHONPATH": SOURCES},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "loading\n"
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=WAIT_S)
    finally:
        process.kill()

    # By a handler of its own: a signal that is left to the kernel would show as -15, and does nothing to process 1.
    assert (process.returncode, rest) == (0, "")


def test_scores_over_http_are_the_rerankers(demo_bundle: Path) -> None:
    settings = ServiceSettings(port=0)
    query = "How many people live in Berlin?"
    texts = ["Berlin has about 3.8 million inhabitants.", "Berlin is known for its museums.", "A violin has four strings."]
    with Reranker.load(demo_bundle) as reranker:
        expected = [float(score) for score in reranker.score(query, texts)]
    with running(load_models([ModelSpec(name="demo", bundle=demo_bundle)], settings), settings) as service:
        rows = service.post("/rerank", {"query": query, "texts": texts, "raw_scores": True}).json()

    assert [row["index"] for row in rows] == sorted(range(3), key=lambda i: -expected[i])
    assert [row["score"] for row in rows] == pytest.approx(sorted(expected, reverse=True), abs=1e-5)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate with")
def test_tls_files_make_it_https(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    subprocess.run([*make, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    with gated_service(tls_cert=certificate, tls_key=key) as (service, session):
        session.let_through()
        answer = service.post("/rerank", BODY)

    assert service.url.startswith("https://")
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--api-key-file", "missing"], "cannot read the API keys"),
        (["--tls-cert", "missing"], "TLS needs a certificate and its key"),
        (["--timeout", "0"], "timeout_s is too small"),
        (["--host", "256.256.256.256", "--port", "0"], "cannot listen there"),
        (["--port", "0", "--max-queue-tokens", "10"], "max_queue_tokens is too small for one pair"),
        (["--port", "0", "--precision", "int8"], "int8"),
    ],
)
def test_what_cannot_be_served_is_refused_before_it_starts(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["serve", str(write_bundle(tmp_path / "tiny")), *arguments])

    assert done.exit_code == 2
    assert message in done.stderr


@pytest.mark.slow
def test_the_process_answers_what_is_half_sent_when_it_is_told_to_stop_and_frees_its_port(tmp_path: Path) -> None:
    body = json.dumps(BODY).encode()
    head = b"POST /rerank HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\nexpect: 100-continue\r\n"
    with served(write_bundle(tmp_path / "tiny")) as (url, process):
        address = httpx.URL(url)
        assert address.port is not None
        with socket.create_connection((address.host, address.port), timeout=WAIT_S) as connection:
            connection.sendall(head + b"content-length: %d\r\n\r\n" % len(body))
            # The service says so when it begins to read: from then on the request is under way.
            assert connection.recv(65_536).startswith(b"HTTP/1.1 100 ")
            process.send_signal(signal.SIGTERM)
            while httpx.get(f"{url}/ready").status_code != 503:
                pass
            late = httpx.post(f"{url}/rerank", json=BODY)
            connection.sendall(body)
            answer = connection.recv(65_536)
        process.communicate(timeout=WAIT_S)

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert late.status_code == 503
    assert process.returncode == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/ready")


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "prometheus_client"])
def test_a_missing_package_answers_with_its_install_line(tmp_path: Path, package: str) -> None:
    code = f"import sys; sys.modules['{package}'] = None; from crossforge.export.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "serve", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": SOURCES},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 3
    assert f"needs the package {package}" in done.stderr
    assert 'pip install "crossforge[serve]"' in done.stderr
