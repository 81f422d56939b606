from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path

import pytest

from crossforge.runtime import machine
from crossforge.runtime.machine import cgroup_cpu_limit, inspect_machine, installed_versions, usable_cores


def write_tree(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "200000 100000\n"}, 2.0),
        ({"cpu.max": "50000 100000\n"}, 0.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "150000\n"}, None),
        ({"cpu.max": "", "cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3.0),
        ({}, None),
    ],
)
def test_the_cpu_quota_is_read_from_either_version_of_cgroups(
    tmp_path: Path, files: dict[str, str], cores: float | None
) -> None:
    assert cgroup_cpu_limit(write_tree(tmp_path, files)) == cores


def test_no_cgroup_is_no_limit(tmp_path: Path) -> None:
    assert cgroup_cpu_limit(tmp_path / "absent") is None


def test_usable_cores_are_bounded_by_the_affinity() -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert 1 <= usable_cores() <= len(allowed)


@pytest.mark.parametrize(("quota", "cores"), [(0.1, 1), (1.0, 1), (10_000.0, len(os.sched_getaffinity(0)))])
def test_usable_cores_are_bounded_by_the_quota(monkeypatch: pytest.MonkeyPatch, quota: float, cores: int) -> None:
    monkeypatch.setattr(machine, "cgroup_cpu_limit", lambda: quota)

    assert usable_cores() == cores


def test_installed_distributions_are_told_with_their_version() -> None:
    assert installed_versions(["no-such-distribution", "numpy"]) == (f"numpy {importlib.metadata.version('numpy')}",)


def test_the_machine_knows_itself() -> None:
    facts = inspect_machine()

    assert facts.cpu
    assert 1 <= facts.usable_cores <= facts.total_cores
    assert bool(facts.gpus) != bool(facts.gpu_reason)
    assert "CPUExecutionProvider" in facts.onnxruntime_providers
    assert any(package.startswith("onnxruntime") for package in facts.onnxruntime_packages)
