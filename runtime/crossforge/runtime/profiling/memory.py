"""How much memory this process holds."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class MemoryUse:
    """Resident memory of a process, in bytes; what is on a GPU is not in it."""

    resident_bytes: int
    peak_bytes: int


def read_memory(status: Path = Path("/proc/self/status")) -> MemoryUse:
    """Ask the kernel. Where it has no ``/proc``, the peak stands for both."""
    try:
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        # Not getrusage's: a process inherits that peak from the one that started it.
        resident, peak = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    except (OSError, KeyError, ValueError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        resident = peak
    return MemoryUse(resident_bytes=resident, peak_bytes=peak)
