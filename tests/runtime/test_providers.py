from __future__ import annotations

from typing import Any

import pytest

from crossforge.profiles import PREFERENCE, ExecutionProvider, InputError, ProviderUnavailableError
from crossforge.runtime.providers import select_providers, why_not
from support.builders import make_machine

TENSORRT, CUDA, NATIVE, CPU = PREFERENCE
GPU_BOX: dict[str, Any] = {
    "gpus": ("NVIDIA L4",),
    "gpu_reason": "",
    "onnxruntime_packages": ("onnxruntime-gpu 1.23.0",),
    "onnxruntime_providers": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
}
CPU_BUILD_ON_GPU_BOX: dict[str, Any] = GPU_BOX | {
    "onnxruntime_packages": ("onnxruntime 1.23.0",),
    "onnxruntime_providers": ("CPUExecutionProvider",),
}
NO_ONNXRUNTIME: dict[str, Any] = {"onnxruntime_packages": (), "onnxruntime_providers": ()}
NO_TENSORRT = 'TensorRT is not installed: pip install "crossforge[tensorrt]", or "crossforge[rtx]"'
NOT_NATIVE = "not native: it is not compiled here: crossforge native"
NO_DRIVER = "no NVIDIA driver (libcuda.so.1 cannot be loaded)"


@pytest.mark.parametrize(
    ("provider", "facts", "reason"),
    [
        (CPU, {}, None),
        (CUDA, GPU_BOX, None),
        (CPU, GPU_BOX, None),
        (TENSORRT, GPU_BOX, NO_TENSORRT),
        (TENSORRT, GPU_BOX | {"tensorrt_packages": ("tensorrt-rtx 1.7.1",)}, None),
        (CUDA, {}, NO_DRIVER),
        (TENSORRT, {}, NO_DRIVER),
        (CUDA, {"gpu_reason": ""}, "no NVIDIA GPU is visible"),
        (
            CUDA,
            CPU_BUILD_ON_GPU_BOX,
            'onnxruntime 1.23.0 is built without it: pip uninstall onnxruntime, then pip install "crossforge[gpu]"',
        ),
        (CPU, NO_ONNXRUNTIME, 'onnxruntime is not installed: pip install "crossforge[cpu]"'),
        (CUDA, GPU_BOX | NO_ONNXRUNTIME, 'onnxruntime is not installed: pip install "crossforge[gpu]"'),
        (CPU, {"onnxruntime_providers": ()}, "the installed onnxruntime is damaged: reinstall it"),
    ],
)
def test_a_provider_is_rejected_for_the_first_reason(
    provider: ExecutionProvider, facts: dict[str, Any], reason: str | None
) -> None:
    assert why_not(provider, make_machine(**facts)) == reason


@pytest.mark.parametrize(
    ("wanted", "facts", "candidates", "rejected"),
    [
        ("auto", {}, (CPU,), (TENSORRT, CUDA, NATIVE)),
        ("auto", GPU_BOX, (CUDA, CPU), (TENSORRT, NATIVE)),
        ("auto", CPU_BUILD_ON_GPU_BOX, (CPU,), (TENSORRT, CUDA, NATIVE)),
        ("cpu", GPU_BOX, (CPU,), ()),
        ("cuda", GPU_BOX, (CUDA, CPU), (NATIVE,)),
        ("cuda", {}, (CPU,), (CUDA, NATIVE)),
        ("tensorrt", GPU_BOX, (CUDA, CPU), (TENSORRT, NATIVE)),
    ],
)
def test_the_best_that_can_run_comes_first(
    wanted: str,
    facts: dict[str, Any],
    candidates: tuple[ExecutionProvider, ...],
    rejected: tuple[ExecutionProvider, ...],
) -> None:
    plan = select_providers(wanted, make_machine(**facts))

    assert plan.candidates == candidates
    assert plan.chosen is candidates[0]
    assert tuple(rejection.provider for rejection in plan.rejected) == rejected


@pytest.mark.parametrize(("wanted", "is_fallback"), [("auto", False), ("cpu", False), ("cuda", True), ("tensorrt", True)])
def test_only_a_provider_that_was_named_can_be_fallen_back_from(wanted: str, is_fallback: bool) -> None:
    assert select_providers(wanted, make_machine()).is_fallback is is_fallback


def test_auto_takes_the_order_that_it_is_given() -> None:
    machine = make_machine(**GPU_BOX)

    assert select_providers("auto", machine, order=(CPU, CUDA)).candidates == (CPU, CUDA)
    assert select_providers("auto", machine, order=(CPU,)).candidates == (CPU,)


def test_a_plan_explains_itself_in_one_line() -> None:
    machine = make_machine(**GPU_BOX)

    assert select_providers("cuda", machine).explain() == "cuda"
    assert select_providers("auto", machine).explain() == f"cuda (not tensorrt: {NO_TENSORRT})"
    assert select_providers("cuda", make_machine()).explain() == f"cpu (not cuda: {NO_DRIVER}; {NOT_NATIVE})"
    assert select_providers("auto", make_machine()).explain() == f"cpu (not tensorrt or cuda: {NO_DRIVER}; {NOT_NATIVE})"


@pytest.mark.parametrize("wanted", ["cuda", "tensorrt"])
def test_strict_plans_the_named_provider_or_nothing(wanted: str) -> None:
    with pytest.raises(ProviderUnavailableError) as caught:
        select_providers(wanted, make_machine(), strict=True)

    assert str(caught.value) == (
        f"the execution provider {wanted} cannot run here ({wanted}: {NO_DRIVER})."
        " Run `crossforge doctor` for the whole picture."
    )


def test_strict_leaves_out_every_other_provider() -> None:
    assert select_providers("cuda", make_machine(**GPU_BOX), strict=True).candidates == (CUDA,)


def test_a_machine_that_runs_nothing_says_why_of_each_provider() -> None:
    with pytest.raises(ProviderUnavailableError) as caught:
        select_providers("auto", make_machine(**NO_ONNXRUNTIME))

    message = str(caught.value)
    assert message.startswith("no execution provider can run here (tensorrt: ")
    assert f"cuda: {NO_DRIVER}" in message
    assert 'cpu: onnxruntime is not installed: pip install "crossforge[cpu]"' in message


@pytest.mark.parametrize("wanted", ["gpu", "CPU", ""])
def test_an_unknown_provider_is_refused(wanted: str) -> None:
    with pytest.raises(InputError) as caught:
        select_providers(wanted, make_machine())
    assert str(caught.value) == f"unknown execution provider; got {wanted!r}; allowed: auto, {', '.join(ExecutionProvider)}"


def test_a_provider_that_cannot_run_this_bundle_says_so() -> None:
    machine = make_machine(**GPU_BOX, tensorrt_packages=("tensorrt 10.9.0",))
    reasons = {TENSORRT: "the bundle has no engine: crossforge build BUNDLE"}
    plan = select_providers("auto", machine, bundle_reasons=reasons)
    assert plan.candidates == (CUDA, CPU)
    assert plan.explain() == f"cuda (not tensorrt: {reasons[TENSORRT]})"
    with pytest.raises(ProviderUnavailableError, match="the bundle has no engine"):
        select_providers("tensorrt", machine, strict=True, bundle_reasons=reasons)


def test_the_native_engine_comes_before_the_cpu_provider_where_it_is_compiled() -> None:
    plan = select_providers("auto", make_machine(native_engine=True))
    assert plan.candidates == (NATIVE, CPU)


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"native_engine": False}, "it is not compiled here: crossforge native"),
        (
            {"native_engine": True, "instruction_sets": ("asimd", "arm64")},
            "this processor has none of amx_int8, avx512_vnni, avx_vnni, avx2, asimddp",
        ),
    ],
)
def test_a_machine_without_the_native_engine_says_so_and_runs_on_the_cpu_provider(
    facts: dict[str, Any], reason: str
) -> None:
    plan = select_providers("auto", make_machine(**facts))
    assert plan.chosen is CPU
    assert f"not native: {reason}" in plan.explain()
    with pytest.raises(ProviderUnavailableError, match=reason):
        select_providers("native", make_machine(**facts), strict=True)


def test_the_native_engine_needs_no_onnxruntime() -> None:
    assert select_providers("auto", make_machine(**NO_ONNXRUNTIME, native_engine=True)).candidates == (
        ExecutionProvider.NATIVE,
    )
