from __future__ import annotations

from dataclasses import replace

import pytest

from crossforge.profiles import ExecutionProvider
from crossforge.runtime.doctor import diagnose
from crossforge.runtime.machine import Machine

CPU_BOX = Machine(
    cpu="A processor",
    instruction_sets=("avx2", "avx512_vnni"),
    usable_cores=2,
    total_cores=8,
    gpus=(),
    gpu_reason="no NVIDIA driver",
    gpu_targets=(),
    tensorrt_packages=(),
    onnxruntime_packages=("onnxruntime 1.31.1",),
    onnxruntime_providers=("CPUExecutionProvider",),
    native_engine=False,
)


def test_a_healthy_machine_has_no_problems() -> None:
    diagnosis = diagnose(CPU_BOX)
    assert diagnosis.problems == ()
    assert [state.name for state in diagnosis.providers if state.available] == [ExecutionProvider.CPU]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"onnxruntime_packages": (), "onnxruntime_providers": ()}, "No onnxruntime is installed"),
        ({"onnxruntime_packages": ("onnxruntime 1", "onnxruntime-gpu 1")}, "overwrite each other"),
        ({"onnxruntime_providers": ()}, "cannot be imported"),
        ({"gpus": ("NVIDIA L4",), "gpu_reason": ""}, "NVIDIA L4 stays unused"),
        ({"instruction_sets": ("avx2",)}, "no VNNI"),
    ],
)
def test_each_problem_is_named_with_its_remedy(change: dict[str, object], words: str) -> None:
    problems = diagnose(replace(CPU_BOX, **change)).problems  # type: ignore[arg-type]
    assert any(words in problem for problem in problems)


def test_a_machine_without_an_engine_runs_nothing() -> None:
    machine = replace(CPU_BOX, onnxruntime_packages=(), onnxruntime_providers=())
    assert not any(state.available for state in diagnose(machine).providers)
