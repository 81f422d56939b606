"""What the tests that need a GPU share."""

from __future__ import annotations

import pytest

from crossforge.export.gates import GATES
from crossforge.export.pairs import flatten, verification_pairs
from crossforge.export.parity import compare_logits
from crossforge.profiles import ExecutionProvider, Precision
from crossforge.runtime.activation import Floats
from crossforge.runtime.machine import inspect_machine
from crossforge.runtime.providers import why_not

MACHINE = inspect_machine()
RECORDS = verification_pairs()
PAIRS = flatten(RECORDS)
needs_a_gpu = [pytest.mark.gpu, pytest.mark.skipif(not MACHINE.gpus, reason=f"no GPU: {MACHINE.gpu_reason}")]


def skip_without(provider: ExecutionProvider) -> None:
    """Skip a test where a provider cannot run, with the reason."""
    if reason := why_not(provider, MACHINE):
        pytest.skip(reason)


def agrees(logits: Floats, reference: Floats, precision: Precision) -> bool:
    """Whether logits of ``PAIRS`` pass a precision's gate against the CPU's float32."""
    gate = GATES[precision]
    return compare_logits(reference, logits, RECORDS, ranking_label=0, name="fp32 on the CPU", gate=gate).passed
