"""The protocols that clients already speak, one module each."""

from crossforge.runtime.serving.dialects.tei import router as tei

ROUTERS = (tei,)
"""Every dialect's paths."""

__all__ = ["ROUTERS"]
