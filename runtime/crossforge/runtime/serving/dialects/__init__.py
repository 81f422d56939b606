"""The protocols that clients already speak, one module each."""

from crossforge.runtime.serving.dialects import cohere, jina, nim, tei, vllm

ROUTERS = (tei.router, cohere.router, jina.router, vllm.router, nim.router)
"""Every dialect's paths."""

__all__ = ["ROUTERS"]
