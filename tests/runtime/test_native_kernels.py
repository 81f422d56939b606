"""The native engine's kernels for other processors: ARM's emulated, AVX-VNNI's in another encoding, AMX's in C++."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from crossforge.export.cli import app
from crossforge.runtime.machine import inspect_machine
from crossforge.runtime.sessions.native import library as native
from crossforge.runtime.sessions.native.library import build_library, kernels_here, load_library

PROGRAM = Path(__file__).parents[1] / "support" / "compare_kernels.cpp"
EMULATED_TILES = PROGRAM.with_name("emulated_tiles.h")
NONE_DIFFERS = " 0 pairs differ alone"
ARM_COMPILER = "aarch64-linux-gnu-g++"
EMULATOR = "qemu-aarch64-static"


def compare(folder: Path, compiler: str, *kernels: str, emulator: tuple[str, ...] = (), machine: str | None = None) -> str:
    """Compile the engine and the program beside it; run it."""
    library = build_library(folder, compiler=compiler, machine=machine)
    program = folder / "compare_kernels"
    headers = Path(native.__file__).parent
    command = [compiler, "-std=c++17", "-O2", f"-I{headers}", str(PROGRAM), str(library), f"-Wl,-rpath,{folder}"]
    subprocess.run([*command, "-o", str(program)], check=True)
    done = subprocess.run([*emulator, str(program), *kernels], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def write_compiler(path: Path, options: str = "", *, without: str | None = None) -> str:
    """A g++ that has further options, or does not know one of its own."""
    refuses = f'case " $* " in *" {without} "*) exit 1 ;; esac' if without else ""
    path.write_text(f'#!/bin/sh\n{refuses}\nexec g++ {options} "$@"\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.slow
def test_arm_kernels_compute_what_the_plain_ones_do(tmp_path: Path) -> None:
    for tool in (ARM_COMPILER, EMULATOR):
        if shutil.which(tool) is None:
            pytest.skip(f"there is no {tool}")
    emulator = (EMULATOR, "-L", "/usr/aarch64-linux-gnu")
    assert NONE_DIFFERS in compare(tmp_path, ARM_COMPILER, "asimddp", emulator=emulator, machine="aarch64")


@pytest.mark.slow
def test_avx_vnni_kernels_compute_what_the_plain_ones_do(tmp_path: Path) -> None:
    if shutil.which("g++") is None or "avx512_vnni" not in inspect_machine().instruction_sets:
        pytest.skip("this needs g++ and a processor with AVX-512 VNNI, whose encoding stands in for the other")
    compiler = write_compiler(tmp_path / "compiler", "-DCROSSFORGE_EVEX -mfma -mavx512vl -mavx512vnni", without="-mavxvnni")
    assert NONE_DIFFERS in compare(tmp_path, compiler, "avx_vnni")


@pytest.mark.slow
def test_amx_kernels_compute_what_avx_512_s_do_bit_for_bit(tmp_path: Path) -> None:
    """Computed in C++, where AMX's instructions end the program on shapes that a processor would fault on."""
    if shutil.which("g++") is None or "avx512_vnni" not in inspect_machine().instruction_sets:
        pytest.skip("this needs g++ and a processor with AVX-512 VNNI")
    compiler = write_compiler(tmp_path / "compiler", f"-DCROSSFORGE_TILES='\"{EMULATED_TILES}\"'")
    assert NONE_DIFFERS in compare(tmp_path, compiler, "amx_int8", "avx512_vnni")
    wrong = tmp_path / "wrong.h"
    wrong.write_text(EMULATED_TILES.read_text().replace("sum += left", "sum -= left"))
    compiler = write_compiler(tmp_path / "compiler", f"-DCROSSFORGE_TILES='\"{wrong}\"'")
    assert "amx_int8" not in kernels_here(load_library(build_library(tmp_path / "wrong", compiler=compiler)))


@pytest.mark.slow
def test_kernels_that_are_left_out_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("g++") is None or not {"avx512_vnni", "avx2"} <= set(inspect_machine().instruction_sets):
        pytest.skip("this needs g++ and a processor with AVX-512 VNNI and AVX2")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    compiler = write_compiler(tmp_path / "compiler", without="-mavx512vnni")
    shown = CliRunner().invoke(app, ["native", "--compiler", compiler])
    assert shown.exit_code == 0, shown.stderr
    said = " ".join(shown.stdout.split())
    assert "this processor runs, the fastest first: avx2, scalar" in said
    assert "Left out: avx512_vnni" in said
