"""Inference sessions: one seam, one module per engine, and a fake that ships."""

from crossforge.runtime.sessions.fake import FakeSession
from crossforge.runtime.sessions.protocol import Session

__all__ = ["FakeSession", "Session"]
