"""The native engine: a BERT-like encoder in C++ on packed tokens, compiled on the machine that runs it."""

from crossforge.runtime.sessions.native.session import NativeSession

__all__ = ["NativeSession"]
