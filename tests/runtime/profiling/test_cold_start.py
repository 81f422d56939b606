from __future__ import annotations

from pathlib import Path

import pytest

from crossforge.profiles import EngineError
from crossforge.runtime.profiling.cold_start import measure_cold_start
from crossforge.runtime.profiling.memory import read_memory
from support.builders import write_bundle


def test_a_fresh_process_tells_what_it_took(tmp_path: Path) -> None:
    start = measure_cold_start(write_bundle(tmp_path), provider="cpu", precision="fp32", runs=1)

    assert min(start.import_ms, start.load_ms, start.first_call_ms) > 0
    assert 1e7 < start.resident_bytes < read_memory().peak_bytes + 1e9


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="there is no bundle"):
        measure_cold_start(tmp_path / "absent", provider="cpu", precision="fp32", runs=1)


def test_memory_is_read_from_the_kernel(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmHWM:\t  300 kB\nVmRSS:\t  200 kB\n")

    assert (read_memory(status).resident_bytes, read_memory(status).peak_bytes) == (200 * 1024, 300 * 1024)
    assert read_memory(tmp_path / "absent").peak_bytes > 1e6
