"""Kernel timings kept between builds. Classic TensorRT only: TensorRT for RTX times nothing when it compiles."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class TimingCache:
    """A file of timings. Losing it costs time and nothing else, so one that cannot be read or written is passed over."""

    path: Path

    @classmethod
    def of(cls, folder: Path, *, compiler_version: str, gpu: str) -> TimingCache:
        """The cache of one compiler version on one GPU model: timings hold for nothing else."""
        return cls(path=folder / re.sub(r"[^\w.]+", "-", f"tensorrt-{compiler_version}-{gpu}.timing"))

    def load_into(self, config: Any) -> None:
        """Give a builder's configuration the timings of earlier builds."""
        try:
            stored = self.path.read_bytes()
        except OSError:
            stored = b""
        cache = config.create_timing_cache(stored)
        if cache is None or not config.set_timing_cache(cache, False):
            config.set_timing_cache(config.create_timing_cache(b""), False)

    def save_from(self, config: Any) -> None:
        """Keep the timings that a build left behind."""
        cache = config.get_timing_cache()
        if cache is None:
            return
        part = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(memoryview(cache.serialize()))
            part.replace(self.path)
        except OSError:
            part.unlink(missing_ok=True)
