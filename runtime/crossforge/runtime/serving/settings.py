"""How the service is set."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path

from crossforge.profiles import InputError
from crossforge.runtime.inputs import MAX_TEXT_CHARS
from crossforge.runtime.microbatch.config import DEFAULT_QUEUE_TOKENS

_POSITIVE = (
    "max_body_bytes",
    "max_passages",
    "max_text_chars",
    "max_queue_tokens",
    "max_connections",
    "timeout_s",
    "header_timeout_s",
    "body_timeout_s",
    "answer_timeout_s",
    "keep_alive_s",
    "drain_timeout_s",
)


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """Address, keys and limits of the service."""

    host: str = "127.0.0.1"
    port: int = 8080
    """0 takes any free one."""
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    """Any of them opens the service; none leaves it open to everybody."""
    max_body_bytes: int = 4_000_000
    max_passages: int = 1_000
    """Passages of one request."""
    max_text_chars: int = 100_000
    """Characters of one query or passage."""
    max_queue_tokens: int = DEFAULT_QUEUE_TOKENS
    """Tokens that may wait for each model; beyond that, 429."""
    max_connections: int = 512
    """Connections that may be open; beyond that, 503. Those without a request give way."""
    timeout_s: float = 30.0
    """Longest time that a request may wait and compute; then 504."""
    header_timeout_s: float = 10.0
    """Longest time that a client may take to send a request's headers."""
    body_timeout_s: float = 30.0
    """Longest time that a client may take to send a request's body."""
    answer_timeout_s: float = 30.0
    """Longest time that a client may take to receive an answer that does not fit the connection's buffers."""
    keep_alive_s: int = 30
    """How long an idle connection is kept."""
    drain_timeout_s: float = 30.0
    """Longest time that requests may take to end once the service is told to stop."""
    micro_batching: bool = True
    """Merge concurrent requests. Otherwise each is scored by itself, one after another."""
    playground: bool = True
    """A page at ``/`` to try the models on, which loads their other variants when they are asked for."""
    tls_cert: Path | None = None
    tls_key: Path | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65_535:
            raise InputError("the port is out of range", got=self.port, allowed="0 to 65535")
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is too small", got=getattr(self, name), allowed="more than 0")
        if self.max_text_chars > MAX_TEXT_CHARS:
            raise InputError("max_text_chars is too large", got=self.max_text_chars, allowed=f"up to {MAX_TEXT_CHARS:,}")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InputError("TLS needs a certificate and its key", got="one of the two", allowed="both, or none")
        for path in (self.tls_cert, self.tls_key):
            if path is not None and not path.is_file():
                raise InputError("a TLS file is missing", got=path, allowed="a PEM file")
        if self.tls_cert is not None and self.tls_key is not None:
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.tls_cert, self.tls_key)
            except OSError as error:
                raise InputError(
                    f"TLS cannot be set up ({error.strerror or error})",
                    got=f"{self.tls_cert} and {self.tls_key}",
                    allowed="a certificate chain and its private key, both PEM",
                ) from error
        if any(not key or not key.isascii() or key != key.strip() or not key.isprintable() for key in self.api_keys):
            raise InputError("an API key cannot be used", allowed="printable ASCII without spaces around it")


def read_api_keys(path: Path) -> tuple[str, ...]:
    """Read API keys, one a line; blank lines and those that start with # are left out.

    Raises:
        InputError: The file cannot be read, or holds no key.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the API keys ({error})", got=path, allowed="a text file, one key a line") from error
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise InputError("the file holds no API key", got=path, allowed="one key a line")
    return keys
