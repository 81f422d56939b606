"""Concurrent requests, merged into token-budget batches. No fixed wait: a batch forms of what came while others ran."""

from crossforge.runtime.microbatch.batcher import MicroBatcher
from crossforge.runtime.microbatch.config import BatcherStats, MicroBatchConfig

__all__ = ["BatcherStats", "MicroBatchConfig", "MicroBatcher"]
