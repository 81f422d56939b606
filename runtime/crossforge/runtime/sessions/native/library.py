"""The engine's library: where it lies once it is compiled, and its functions through ctypes."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
from functools import cache
from pathlib import Path

from crossforge.profiles import EngineError, ProviderUnavailableError

_SOURCES = (
    *("engine.cpp", "kernels_scalar.cpp", "kernels_amx.cpp", "kernels_avx512.cpp", "kernels_avx_vnni.cpp"),
    *("kernels_avx2.cpp", "kernels_neon.cpp"),
)
_HEADERS = ("engine.h", "kernels.h", "kernels_vector.h", "kernels_avx2.h", "kernels_avx512.h")
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra")
_AVX512_FLAGS = (
    *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mfma"),
    # GCC 12 takes the undefined registers of its own intrinsics for a fault of whoever calls them.
    *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),
)
_X86_FLAGS: dict[str, tuple[str, ...]] = {
    "kernels_avx512.cpp": _AVX512_FLAGS,
    "kernels_amx.cpp": (*_AVX512_FLAGS, "-mamx-tile", "-mamx-int8"),
    "kernels_avx_vnni.cpp": ("-mavx2", "-mfma", "-mavxvnni"),
    # Otherwise GCC 12 copies the sums from register to register inside the product's loop: 55 pairs/s a core, 68 without.
    "kernels_avx2.cpp": ("-mavx2", "-mfma", "-O2", "-fno-ivopts", "-fno-tree-pre"),
}
_SOURCE_FLAGS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": _X86_FLAGS,
    "aarch64": {"kernels_neon.cpp": ("-march=armv8.2-a+dotprod",)},
}
COMPILER = "g++"
BUILD_COMMAND = "crossforge native"
NATIVE_INSTRUCTION_SETS = ("amx_int8", "avx512_vnni", "avx_vnni", "avx2", "asimddp")
"""What the vector kernels are for, the fastest first, by the kernel's names; one of them is enough."""
SCALAR = "scalar"
"""The kernels in plain C++: they run anywhere, and are slow."""

_Floats = ctypes.c_void_p


class CLinear(ctypes.Structure):
    """``crossforge_linear`` of engine.h."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("weight", "scale", "bias", "smoothing")]


class CNorm(ctypes.Structure):
    """``crossforge_norm`` of engine.h."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("gain", "offset")]


class CLayer(ctypes.Structure):
    """``crossforge_layer`` of engine.h."""

    _fields_ = [
        *((name, CLinear) for name in ("query", "key", "value", "attention_output", "feed_forward_in", "feed_forward_out")),
        ("attention_norm", CNorm),
        ("feed_forward_norm", CNorm),
    ]


class CModel(ctypes.Structure):
    """``crossforge_model`` of engine.h."""

    _fields_ = [
        *(
            (name, ctypes.c_int32)
            for name in ("hidden", "heads", "layers", "intermediate", "vocabulary", "positions", "segments", "labels")
        ),
        ("padding_id", ctypes.c_int32),
        ("epsilon", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("words", "word_scales", "position_rows", "segment_rows")),
        ("embedding_norm", CNorm),
        ("layer", ctypes.POINTER(CLayer)),
        *((name, ctypes.c_void_p) for name in ("dense_weight", "dense_bias", "label_weight", "label_bias")),
    ]


def default_library_dir() -> Path:
    """``$XDG_CACHE_HOME/crossforge/native``, or ``~/.cache/crossforge/native``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crossforge" / "native"


def library_path(folder: Path | None = None) -> Path:
    """Where the library of this version's sources lies, or would.

    The name carries a digest of the sources and flags: a library of another version is never loaded.
    """
    digest = hashlib.sha256(repr((_FLAGS, _SOURCE_FLAGS, platform.machine())).encode())
    for name in (*_SOURCES, *_HEADERS):
        digest.update((Path(__file__).parent / name).read_bytes())
    return (folder or default_library_dir()) / f"libcrossforge-{digest.hexdigest()[:16]}.so"


def find_library(folder: Path | None = None) -> Path | None:
    """The compiled library; None where there is none. Compiles nothing."""
    path = library_path(folder)
    return path if path.is_file() else None


def find_compiler(name: str = COMPILER) -> str | None:
    """The path of a compiler; None where there is none of this name."""
    import shutil

    return shutil.which(name)


def build_library(folder: Path | None = None, *, compiler: str = COMPILER, machine: str | None = None) -> Path:
    """Compile the library.

    Args:
        folder: Where it goes; None is :func:`default_library_dir`.
        compiler: A C++17 compiler that takes GCC's options. Kernels for instructions that it does not know are left out.
        machine: The architecture that ``compiler`` compiles for, such as ``aarch64``; None is this machine's.

    Returns:
        The library, which stands complete or not at all.

    Raises:
        ProviderUnavailableError: There is no such compiler.
        EngineError: It does not compile.
    """
    # What only a build needs is not imported by every process that looks for the library.
    import tempfile
    from concurrent.futures import ThreadPoolExecutor

    if find_compiler(compiler) is None:
        raise ProviderUnavailableError(
            f"there is no compiler {compiler!r} to build the native engine with",
            fix="Install one (Debian: apt-get install g++), or name another with --compiler.",
        )
    path = library_path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = _SOURCE_FLAGS.get(machine or platform.machine(), {})
    with tempfile.TemporaryDirectory(dir=path.parent) as work:

        def compile_one(name: str) -> str:
            own = flags.get(name, ())
            own = own if _takes(compiler, own) else ()
            target = str(Path(work) / f"{name}.o")
            _compile([compiler, *_FLAGS, *own, "-c", str(Path(__file__).parent / name), "-o", target])
            return target

        with ThreadPoolExecutor(os.cpu_count()) as threads:
            objects = list(threads.map(compile_one, _SOURCES))
        linked = Path(work) / path.name
        _compile([compiler, "-shared", "-o", str(linked), *objects])
        linked.replace(path)
    return path


def _takes(compiler: str, flags: tuple[str, ...]) -> bool:
    """Whether a compiler knows the instructions: GCC 10 does not know AVX-VNNI."""
    import subprocess

    command = [compiler, *flags, "-E", "-x", "c++", os.devnull]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _compile(command: list[str]) -> None:
    """Run a compiler whose last argument but the inputs is ``-o FILE``."""
    import subprocess

    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        got = done.stderr[-2000:] or f"exit status {done.returncode}"
        raise EngineError(f"the native engine does not compile ({' '.join(command)})", got=got)
    if not Path(command[command.index("-o") + 1]).is_file():
        raise EngineError(
            f"the compiler wrote nothing ({' '.join(command)})", fix="Name a C++17 compiler that takes GCC's options."
        )


@cache
def load_library(path: Path) -> ctypes.CDLL:
    """Load a library and declare its functions.

    Raises:
        EngineError: It cannot be loaded.
    """
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise EngineError(
            f"cannot load the native engine {path} ({error})", fix=f"Build it again: {BUILD_COMMAND}"
        ) from error
    library.crossforge_kernels.restype = ctypes.c_char_p
    library.crossforge_kernels.argtypes = [ctypes.c_int32]
    library.crossforge_open.restype = ctypes.c_void_p
    library.crossforge_open.argtypes = [ctypes.POINTER(CModel), ctypes.c_char_p]
    library.crossforge_close.restype = None
    library.crossforge_close.argtypes = [ctypes.c_void_p]
    library.crossforge_gelu.restype = None
    library.crossforge_gelu.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]
    library.crossforge_run.restype = ctypes.c_int32
    library.crossforge_run.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int64] * 2 + [ctypes.c_void_p]
    return library


def kernels_here(library: ctypes.CDLL) -> tuple[str, ...]:
    """Names of the kernels that this processor runs: one of :data:`NATIVE_INSTRUCTION_SETS` each, and ``scalar`` last."""
    names: list[str] = []
    while name := library.crossforge_kernels(len(names)):
        names.append(name.decode())
    return tuple(names)
