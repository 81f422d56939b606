"""The engine's library: where it lies once it is compiled, and its functions through ctypes."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from crossforge.profiles import EngineError, ProviderUnavailableError

_SOURCES = ("engine.cpp", "kernels_scalar.cpp", "kernels_avx512.cpp")
_HEADERS = ("engine.h", "kernels.h")
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra")
# GCC 12 takes the undefined registers of its own intrinsics for a fault of whoever calls them.
_SOURCE_FLAGS = {
    "kernels_avx512.cpp": (
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mfma"),
        *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),
    )
}
COMPILER = "g++"
BUILD_COMMAND = "crossforge native"
NATIVE_INSTRUCTION_SET = "avx512_vnni"

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
    digest = hashlib.sha256(repr((_FLAGS, _SOURCE_FLAGS)).encode())
    for name in (*_SOURCES, *_HEADERS):
        digest.update((Path(__file__).parent / name).read_bytes())
    return (folder or default_library_dir()) / f"libcrossforge-{digest.hexdigest()[:16]}.so"


def find_library(folder: Path | None = None) -> Path | None:
    """The compiled library; None where there is none. Compiles nothing."""
    path = library_path(folder)
    return path if path.is_file() else None


def find_compiler(name: str = COMPILER) -> str | None:
    """The path of a compiler; None where there is none of this name."""
    return shutil.which(name)


def build_library(folder: Path | None = None, *, compiler: str = COMPILER) -> Path:
    """Compile the library.

    Args:
        folder: Where it goes; None is :func:`default_library_dir`.
        compiler: A C++17 compiler that takes GCC's options.

    Returns:
        The library, which stands complete or not at all.

    Raises:
        ProviderUnavailableError: There is no such compiler.
        EngineError: It does not compile.
    """
    if find_compiler(compiler) is None:
        raise ProviderUnavailableError(
            f"there is no compiler {compiler!r} to build the native engine with",
            fix="Install one (Debian: apt-get install g++), or name another with --compiler.",
        )
    path = library_path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as work:
        objects = []
        for name in _SOURCES:
            objects.append(str(Path(work) / f"{name}.o"))
            source = str(Path(__file__).parent / name)
            _compile([compiler, *_FLAGS, *_SOURCE_FLAGS.get(name, ()), "-c", source, "-o", objects[-1]])
        linked = Path(work) / path.name
        _compile([compiler, "-shared", "-o", str(linked), *objects])
        linked.replace(path)
    return path


def _compile(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EngineError(f"the native engine does not compile ({' '.join(command)})", got=done.stderr[-2000:])


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
    library.crossforge_has_avx512_vnni.restype = ctypes.c_int32
    library.crossforge_has_avx512_vnni.argtypes = []
    library.crossforge_open.restype = ctypes.c_void_p
    library.crossforge_open.argtypes = [ctypes.POINTER(CModel), ctypes.c_int32]
    library.crossforge_close.restype = None
    library.crossforge_close.argtypes = [ctypes.c_void_p]
    library.crossforge_gelu.restype = None
    library.crossforge_gelu.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]
    library.crossforge_run.restype = ctypes.c_int32
    library.crossforge_run.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int64] * 2 + [ctypes.c_void_p]
    return library
