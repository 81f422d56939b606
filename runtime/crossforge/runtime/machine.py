"""What this machine has: read once at the edge, so that choosing stays pure."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import math
import os
import platform
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from crossforge.runtime.sessions.native.library import find_library

_INTERESTING_FLAGS = (
    "avx2", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8",
    "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
_ONNXRUNTIME_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")
_TENSORRT_DISTRIBUTIONS = ("tensorrt", "tensorrt-rtx")
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
"""``CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR`` and ``_MINOR`` of the CUDA driver API."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The facts that provider and precision choice rest on."""

    cpu: str
    """The processor's name."""
    instruction_sets: tuple[str, ...]
    """Vector extensions as the kernel names them; ``arm64`` on that architecture."""
    usable_cores: int
    """Cores that this process may use, whatever the machine has: affinity and cgroup quota."""
    total_cores: int
    gpus: tuple[str, ...]
    """Names of the visible NVIDIA GPUs."""
    gpu_reason: str
    """Why ``gpus`` is empty; blank if it is not."""
    gpu_targets: tuple[str, ...]
    """Compute capability of each, such as ``sm89``."""
    tensorrt_packages: tuple[str, ...]
    """Installed TensorRT distributions, as ``name version``."""
    onnxruntime_packages: tuple[str, ...]
    """Installed distributions that own the ``onnxruntime`` folder, as ``name version``. One is right."""
    onnxruntime_providers: tuple[str, ...]
    """Providers that the installed build holds, which does not mean that they load."""
    native_engine: bool
    """Whether the native engine of this version is compiled."""
    openvino_packages: tuple[str, ...] = ()
    """The installed OpenVINO, as ``name version``."""


def inspect_machine() -> Machine:
    """Read the facts of the machine that this process runs on."""
    gpus, gpu_reason = _visible_gpus()
    return Machine(
        cpu=_cpu_name(),
        instruction_sets=_instruction_sets(),
        usable_cores=usable_cores(),
        total_cores=os.cpu_count() or 1,
        gpus=tuple(name for name, _ in gpus),
        gpu_reason=gpu_reason,
        gpu_targets=tuple(target for _, target in gpus),
        tensorrt_packages=installed_versions(_TENSORRT_DISTRIBUTIONS),
        onnxruntime_packages=installed_versions(_ONNXRUNTIME_DISTRIBUTIONS),
        onnxruntime_providers=_onnxruntime_providers(),
        native_engine=find_library() is not None,
        openvino_packages=installed_versions(("openvino",)),
    )


def usable_cores() -> int:
    """Cores that this process may use: its CPU affinity, bounded by its cgroup's CPU quota (rounded up)."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_cpu_limit()
    return affinity if quota is None else max(1, min(affinity, math.ceil(quota)))


def cgroup_cpu_limit(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """The CPU quota of this process's cgroup in cores (version 2 or 1); None where there is no limit."""
    try:
        quota, period = (root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (root / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if quota in ("max", "-1"):
        return None
    return int(quota) / int(period)


def installed_versions(distributions: Sequence[str]) -> tuple[str, ...]:
    """Those of the named distributions that are installed, as ``name version``.

    Read from the names of their ``.dist-info`` folders. importlib.metadata says the same, and importing it alone takes some
    percent of the time from a process's start to its first score.
    """
    installed: dict[str, str] = {}
    for folder in sys.path:
        for path in Path(folder or ".").glob("*.dist-info"):
            name, _, version = path.name.removesuffix(".dist-info").partition("-")
            installed.setdefault(re.sub(r"[-_.]+", "-", name).lower(), version)
    return tuple(f"{name} {installed[name]}" for name in distributions if name in installed)


def _onnxruntime_providers() -> tuple[str, ...]:
    if importlib.util.find_spec("onnxruntime") is None:
        return ()
    try:
        return tuple(importlib.import_module("onnxruntime").get_available_providers())
    except (ImportError, AttributeError):  # two builds that overwrote each other
        return ()


def _cpu_name() -> str:
    for line in _cpuinfo():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _instruction_sets() -> tuple[str, ...]:
    present: set[str] = set()
    for line in _cpuinfo():
        if line.startswith(("flags", "Features")):
            present = set(line.partition(":")[2].split())
            break
    found = [flag for flag in _INTERESTING_FLAGS if flag in present]
    if platform.machine() in ("aarch64", "arm64"):
        found.append("arm64")
    return tuple(found)


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


def _visible_gpus() -> tuple[tuple[tuple[str, str], ...], str]:
    """Name and compute capability of each GPU, and why there is none.

    Asks the driver alone. Nothing here can crash or start a CUDA context, unlike asking an inference engine.
    """
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return (), "no NVIDIA driver (libcuda.so.1 cannot be loaded)"
    if status := cuda.cuInit(0):
        return (), f"the NVIDIA driver found no usable GPU (cuInit answered {status})"
    count = ctypes.c_int()
    if status := cuda.cuDeviceGetCount(ctypes.byref(count)):
        return (), f"the NVIDIA driver could not count its GPUs (it answered {status})"
    gpus = []
    for ordinal in range(count.value):
        name = ctypes.create_string_buffer(256)
        cuda.cuDeviceGetName(name, len(name), ordinal)
        version = [ctypes.c_int(), ctypes.c_int()]
        for number, attribute in zip(version, (_CAPABILITY_MAJOR, _CAPABILITY_MINOR), strict=True):
            cuda.cuDeviceGetAttribute(ctypes.byref(number), attribute, ordinal)
        gpus.append((name.value.decode(errors="replace"), f"sm{version[0].value}{version[1].value}"))
    return tuple(gpus), "" if gpus else "the NVIDIA driver sees no GPU"
