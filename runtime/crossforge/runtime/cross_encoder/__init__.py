"""A bundle behind the interface of ``sentence_transformers.CrossEncoder``."""

from crossforge.runtime.cross_encoder.model import CrossEncoder

__all__ = ["CrossEncoder"]
