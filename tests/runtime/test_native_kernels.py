"""The native engine's kernels for other processors: ARM's under an emulator, AVX-VNNI's in another encoding."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from crossforge.runtime.machine import inspect_machine
from crossforge.runtime.sessions.native import library as native
from crossforge.runtime.sessions.native.library import build_library

PROGRAM = Path(__file__).parents[1] / "support" / "compare_kernels.cpp"
ARM_COMPILER = "aarch64-linux-gnu-g++"
EMULATOR = "qemu-aarch64-static"


def compare(folder: Path, compiler: str, kernels: str, *, emulator: tuple[str, ...] = (), machine: str | None = None) -> str:
    """Compile the engine and the program beside it; run it."""
    library = build_library(folder, compiler=compiler, machine=machine)
    program = folder / "compare_kernels"
    headers = Path(native.__file__).parent
    command = [compiler, "-std=c++17", "-O2", f"-I{headers}", str(PROGRAM), str(library), f"-Wl,-rpath,{folder}"]
    subprocess.run([*command, "-o", str(program)], check=True)
    done = subprocess.run([*emulator, str(program), kernels], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_arm_kernels_compute_what_the_plain_ones_do(tmp_path: Path) -> None:
    for tool in (ARM_COMPILER, EMULATOR):
        if shutil.which(tool) is None:
            pytest.skip(f"there is no {tool}")
    emulator = (EMULATOR, "-L", "/usr/aarch64-linux-gnu")
    assert "0 pairs differ alone" in compare(tmp_path, ARM_COMPILER, "asimddp", emulator=emulator, machine="aarch64")


@pytest.mark.slow
def test_avx_vnni_kernels_compute_what_the_plain_ones_do(tmp_path: Path) -> None:
    if shutil.which("g++") is None or "avx512_vnni" not in inspect_machine().instruction_sets:
        pytest.skip("this needs g++ and a processor with AVX-512 VNNI, whose encoding stands in for the other")
    compiler = tmp_path / "compiler"
    knows_no_avx_vnni = 'case "$*" in *-mavxvnni*) exit 1 ;; esac'
    compiler.write_text(f'#!/bin/sh\n{knows_no_avx_vnni}\nexec g++ -DCROSSFORGE_EVEX -mfma -mavx512vl -mavx512vnni "$@"\n')
    compiler.chmod(0o755)
    assert "0 pairs differ alone" in compare(tmp_path, str(compiler), "avx_vnni")
