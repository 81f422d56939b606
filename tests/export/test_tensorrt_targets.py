"""Which compiler, for which GPU, and what is refused."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from crossforge.export.tensorrt import backend as backend_module
from crossforge.export.tensorrt import device as device_module
from crossforge.export.tensorrt.backend import (
    TargetPlan,
    ahead_of_time_targets,
    choose_backend,
    find_needed_device,
    load_backend,
    plan_targets,
)
from crossforge.export.tensorrt.device import Device, find_device
from crossforge.export.tensorrt.options import CURRENT, BuildOptions, parse_targets
from crossforge.profiles import EngineBackend, InputError, MachineError, MissingPackageError
from support.builders import make_machine
from support.fake_tensorrt import FakeTensorrt

CLASSIC, RTX = EngineBackend.TENSORRT, EngineBackend.TENSORRT_RTX
ALLOWED = ("sm75", "sm86", "sm89")
L4 = Device(name="NVIDIA L4", compute_capability="sm89")
H100 = Device(name="NVIDIA H100", compute_capability="sm90")


# Options


@pytest.mark.parametrize(
    ("text", "targets"),
    [("current", ("current",)), ("sm86,sm89", ("sm86", "sm89")), (" SM86 , sm86,,Current", ("sm86", "current"))],
)
def test_targets_are_a_list_with_commas(text: str, targets: tuple[str, ...]) -> None:
    assert parse_targets(text) == targets


@pytest.mark.parametrize("text", ["", " , "])
def test_no_target_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="there is no target"):
        parse_targets(text)


@pytest.mark.parametrize("bad", [{"targets": ()}, {"builder_level": 6}, {"builder_level": -1}, {"workspace_mb": 0}])
def test_options_out_of_range_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="allowed: "):
        BuildOptions(**bad)


# The compiler


@pytest.mark.parametrize(
    ("targets", "installed", "chosen"),
    [
        ((CURRENT,), (CLASSIC, RTX), CLASSIC),
        ((CURRENT,), (RTX,), RTX),
        ((CURRENT,), (), RTX),
        (("sm86",), (CLASSIC,), RTX),
        ((CURRENT, "sm86"), (CLASSIC, RTX), RTX),
    ],
)
def test_auto_takes_the_compiler_that_suits_the_targets(
    targets: tuple[str, ...], installed: tuple[EngineBackend, ...], chosen: EngineBackend
) -> None:
    assert choose_backend(BuildOptions(targets=targets), installed) is chosen


def test_a_named_compiler_is_taken() -> None:
    assert choose_backend(BuildOptions(backend=RTX), (CLASSIC, RTX)) is RTX


@pytest.mark.parametrize(("backend", "extra"), [(CLASSIC, "tensorrt"), (RTX, "rtx")])
def test_a_missing_compiler_names_its_extra(backend: EngineBackend, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_module.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingPackageError, match=rf'pip install "crossforge\[{extra}\]"'):
        load_backend(backend)


def test_a_compiler_whose_libraries_do_not_load_is_the_machines_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> ModuleType:
        raise OSError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr(backend_module.importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(backend_module.importlib, "import_module", fail)
    with pytest.raises(MachineError, match=r"cannot be loaded \(libnvinfer"):
        load_backend(CLASSIC)


def test_a_compiler_that_is_not_strongly_typed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_module.importlib.util, "find_spec", lambda _: object())
    monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorrt(version="8.6.1"))  # type: ignore[arg-type]
    with pytest.raises(MachineError, match=r"too old; got 8\.6\.1; allowed: 10\.0 or later"):
        load_backend(CLASSIC)


def test_only_named_capabilities_count_as_targets() -> None:
    assert ahead_of_time_targets(FakeTensorrt(ahead_of_time=["SM75", "SM86", "SM89"])) == ALLOWED
    assert ahead_of_time_targets(FakeTensorrt()) == ()


# The plan


def test_each_target_gets_an_engine() -> None:
    plans = plan_targets(BuildOptions(targets=("sm89", "sm86")), RTX, ALLOWED, None)
    assert plans == (TargetPlan(targets=("sm89",), gpu=None), TargetPlan(targets=("sm86",), gpu=None))


def test_current_is_the_capability_of_this_gpu() -> None:
    plans = plan_targets(BuildOptions(targets=(CURRENT, "sm89", "sm86")), RTX, ALLOWED, L4)
    assert [plan.targets for plan in plans] == [("sm89",), ("sm86",)]


def test_hardware_compatible_is_one_engine_for_all_targets() -> None:
    options = BuildOptions(targets=("sm86", "sm89"), hardware_compatible=True)
    assert plan_targets(options, RTX, ALLOWED, None) == (TargetPlan(targets=("sm86", "sm89"), gpu=None),)


def test_an_unknown_target_is_answered_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="unknown target; got sm9x; allowed: current, sm75, sm86, sm89"):
        plan_targets(BuildOptions(targets=("sm86", "sm9x")), RTX, ALLOWED, None)


def test_a_gpu_that_tensorrt_for_rtx_does_not_know_is_sent_to_the_other_one() -> None:
    with pytest.raises(MachineError, match=r"does not compile for NVIDIA H100; got sm90.*--backend tensorrt"):
        plan_targets(BuildOptions(), RTX, ALLOWED, H100)


def test_tensorrt_for_rtx_makes_no_version_compatible_engines() -> None:
    with pytest.raises(InputError, match="no version-compatible engines"):
        plan_targets(BuildOptions(targets=("sm86",), version_compatible=True), RTX, ALLOWED, None)


def test_classic_tensorrt_builds_for_one_gpu_model() -> None:
    for targets in ((CURRENT,), ("sm90",), (CURRENT, "sm90")):
        assert plan_targets(BuildOptions(targets=targets), CLASSIC, (), H100) == (
            TargetPlan(targets=("sm90",), gpu="NVIDIA H100"),
        )


def test_classic_tensorrt_makes_engines_for_ampere_and_later() -> None:
    options = BuildOptions(hardware_compatible=True)
    assert plan_targets(options, CLASSIC, (), H100) == (TargetPlan(targets=("sm80+",), gpu=None),)


def test_classic_tensorrt_builds_for_no_other_gpu() -> None:
    with pytest.raises(
        InputError, match=r"only for the GPU of this machine; got sm86; allowed: current, sm90.*tensorrt-rtx"
    ):
        plan_targets(BuildOptions(targets=("sm86",)), CLASSIC, (), H100)


# The GPU


def no_gpu() -> Device:
    raise MachineError("this machine has no usable GPU", fix="Name the GPUs.")


def test_named_targets_need_no_gpu() -> None:
    assert find_needed_device(BuildOptions(targets=("sm86",)), RTX, no_gpu) is None


@pytest.mark.parametrize("targets", [(CURRENT,), ("sm86",)])
def test_classic_tensorrt_without_a_gpu_points_to_the_other_one(targets: tuple[str, ...]) -> None:
    with pytest.raises(MachineError, match=r"builds only on the GPU.*no usable GPU.*--backend tensorrt-rtx --target"):
        find_needed_device(BuildOptions(targets=targets), CLASSIC, no_gpu)


def test_current_without_a_gpu_is_the_machines_fault() -> None:
    with pytest.raises(MachineError, match=r"no usable GPU.*Name the GPUs"):
        find_needed_device(BuildOptions(), RTX, no_gpu)


GPU_MACHINE = make_machine(gpus=("NVIDIA L4",), gpu_reason="")


@pytest.fixture
def cudart(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A CUDA runtime with one GPU, which a test may change."""
    properties = SimpleNamespace(name=b"NVIDIA L4", major=8, minor=9)
    runtime = SimpleNamespace(
        cudaGetDeviceCount=lambda: (0, 1), cudaGetDeviceProperties=lambda ordinal: (ordinal, properties)
    )
    monkeypatch.setattr(device_module, "inspect_machine", lambda: GPU_MACHINE)
    monkeypatch.setattr(device_module.importlib, "import_module", lambda _: runtime)
    return runtime


def test_a_gpu_is_described_by_name_and_capability(cudart: Any) -> None:  # noqa: ARG001
    assert find_device() == L4


@pytest.mark.parametrize("answer", [(35, None), (0, 0)])
def test_a_gpu_that_cuda_cannot_use_is_none(cudart: Any, answer: tuple[int, int | None]) -> None:
    cudart.cudaGetDeviceCount = lambda: answer
    cudart.cudaGetDeviceProperties = None  # must not be reached
    with pytest.raises(MachineError, match="CUDA cannot use NVIDIA L4"):
        find_device()


def test_without_a_driver_no_cuda_library_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = replace(GPU_MACHINE, gpus=(), gpu_reason="no NVIDIA driver")
    monkeypatch.setattr(device_module, "inspect_machine", lambda: machine)
    monkeypatch.setattr(device_module.importlib, "import_module", pytest.fail)
    with pytest.raises(MachineError, match="no usable GPU: no NVIDIA driver") as error:
        find_device()
    assert error.value.exit_code == 3


def test_missing_cuda_bindings_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "inspect_machine", lambda: GPU_MACHINE)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(MissingPackageError, match="cuda-bindings"):
        find_needed_device(BuildOptions(), CLASSIC, find_device)
