"""The command ``serve``."""

from __future__ import annotations

import ipaddress
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.markup import escape

from crossforge.profiles import MissingPackageError
from crossforge.runtime.cli_options import (
    DebugOption,
    DeploymentOption,
    JsonOption,
    PrecisionOption,
    ProviderOption,
    StrictOption,
    bytes_of,
    read_deployment,
)
from crossforge.runtime.console import err, handles_errors, print_json

app = typer.Typer(add_completion=False)


@app.command()
@handles_errors
def serve(
    bundle: Annotated[
        list[str], typer.Argument(help="Bundles to serve, each BUNDLE or NAME=BUNDLE; the first is the default.")
    ],
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 is every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8080,
    api_key_file: Annotated[
        Path | None, typer.Option(help="API keys, one a line.", show_default="open to everybody")
    ] = None,
    max_body_mb: Annotated[float, typer.Option(help="Largest body of a request, in MB.")] = 4.0,
    max_passages: Annotated[int, typer.Option(help="Most passages of a request.")] = 1_000,
    max_text_chars: Annotated[int, typer.Option(help="Most characters of a query or passage.")] = 100_000,
    max_queue_tokens: Annotated[int, typer.Option(help="Most tokens that wait for a model; beyond that, 429.")] = 262_144,
    max_connections: Annotated[
        int, typer.Option(help="Most open connections; beyond that, 503. Those without a request give way.")
    ] = 512,
    timeout: Annotated[float, typer.Option(help="Seconds that a request may wait and compute; then 504.")] = 30.0,
    drain_timeout: Annotated[float, typer.Option(help="Seconds that requests may take to end after SIGTERM.")] = 30.0,
    micro_batching: Annotated[bool, typer.Option(help="Merge concurrent requests.")] = True,
    playground: Annotated[bool, typer.Option(help="A page at / to try the models on.")] = True,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain (PEM).", show_default="no TLS")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key (PEM).")] = None,
    provider: ProviderOption = "auto",
    precision: PrecisionOption = "auto",
    strict: StrictOption = False,
    deployment: DeploymentOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Serve bundles over HTTP, in the dialects of TEI, Cohere, Jina, vLLM and NIM."""
    try:
        from crossforge.runtime.serving.app import create_app
        from crossforge.runtime.serving.logs import configure_logging
        from crossforge.runtime.serving.server import bind, make_server, url_of
    except ModuleNotFoundError as error:
        raise MissingPackageError(str(error.name), extra="serve", purpose="Serving over HTTP") from error
    from crossforge.runtime.serving.models import ModelSpec, load_models
    from crossforge.runtime.serving.settings import ServiceSettings, read_api_keys

    settings = ServiceSettings(
        host=host,
        port=port,
        api_keys=() if api_key_file is None else read_api_keys(api_key_file),
        max_body_bytes=bytes_of(max_body_mb, "--max-body-mb"),
        max_passages=max_passages,
        max_text_chars=max_text_chars,
        max_queue_tokens=max_queue_tokens,
        max_connections=max_connections,
        timeout_s=timeout,
        drain_timeout_s=drain_timeout,
        micro_batching=micro_batching,
        playground=playground,
        tls_cert=tls_cert,
        tls_key=tls_key,
    )
    # Bound before the models are loaded: a port that is taken is better known at once.
    with bind(settings) as listening, _ends_on_sigterm():
        models = load_models(
            [ModelSpec.parse(text) for text in bundle],
            settings,
            provider=provider,
            precision=precision,
            strict=strict,
            deployment=read_deployment(deployment),
        )
        url = url_of(listening, settings)
        for name, model in models.items():
            err.print(f"[bold]{escape(name)}[/]  {escape(model.explain())}")
        if not settings.api_keys and not _is_loopback(host):
            err.print("[yellow]Warning:[/] everybody who reaches this address may use it; --api-key-file asks for a key")
        configure_logging()
        if as_json:
            print_json({"url": url, "models": {name: model.explain() for name, model in models.items()}})
            sys.stdout.flush()
        else:
            err.print(f"[green]Serving[/] at {url}")
        make_server(create_app(models, settings), settings).run(sockets=[listening])


@contextmanager
def _ends_on_sigterm() -> Iterator[None]:
    """SIGTERM ends the process until the server handles it: while models load, there is nothing to drain.

    The kernel passes over a signal for which a container's first process has no handler: without one, a stop that comes
    during the load would be lost, and the container killed at the end of its grace period.
    """

    def end(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001
        raise SystemExit(0)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
