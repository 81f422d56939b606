"""The command that builds engines: ``build``."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from crossforge.export.requirements import require_extras
from crossforge.export.tensorrt.options import BuildOptions, parse_targets
from crossforge.profiles import EngineBackend, EngineRecord, InputError, Precision
from crossforge.runtime.bundle import Bundle, refuse_hub
from crossforge.runtime.cli_options import (
    DebugOption,
    JsonOption,
)
from crossforge.runtime.console import TerminalProgress, err, handles_errors, out, print_json
from crossforge.runtime.precision import AUTO

app = typer.Typer(add_completion=False)


class BackendName(StrEnum):
    """Values of ``--backend``."""

    AUTO = "auto"
    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"


@app.command()
@handles_errors
def build(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.")],
    target: Annotated[
        str, typer.Option(help="GPUs to build for, separated by commas: current, or compute capabilities such as sm86.")
    ] = "current",
    precision: Annotated[
        str, typer.Option(help="The variant to compile: fp16, int8_qdq or fp32; auto: fp16, or fp32 without it.")
    ] = AUTO,
    backend: Annotated[
        BackendName, typer.Option(help="tensorrt-rtx compiles ahead of time, tensorrt on the GPU itself.")
    ] = BackendName.AUTO,
    workload: Annotated[
        Path | None,
        typer.Option(help="A run (JSON lines) whose pairs are typical; shapes are chosen for it.", show_default="built-in"),
    ] = None,
    profiles: Annotated[Path | None, typer.Option(help="Optimization profiles in TOML.")] = None,
    max_profiles: Annotated[int | None, typer.Option(help="The most profiles to choose.", show_default="4")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Largest batch x sequence to reserve memory for.", show_default="16384")
    ] = None,
    builder_level: Annotated[
        int | None, typer.Option(help="How hard the builder tries, 0 to 5.", show_default="the builder's")
    ] = None,
    workspace: Annotated[
        int | None, typer.Option(help="Scratch memory of a layer in MiB.", show_default="all of the GPU's")
    ] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Let later TensorRT versions run it. Not with tensorrt-rtx.")
    ] = False,
    hardware_compatible: Annotated[
        bool,
        typer.Option("--hardware-compatible", help="One engine for all targets (tensorrt: for Ampere and later)."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Build again what is there.")] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Then remove the engines of variants that the bundle holds no more.")
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Compile TensorRT engines for the shapes that really come, for this GPU or ahead of time for others."""
    require_extras("rtx", purpose="Building engines")
    from crossforge.export.tensorrt.build import build_engines
    from crossforge.export.tensorrt.shapes import ShapeOptions

    options = BuildOptions(
        targets=parse_targets(target),
        precision=_choose_precision(bundle) if precision == AUTO else _parse_precision(precision),
        backend=None if backend is BackendName.AUTO else EngineBackend(backend),
        builder_level=builder_level,
        workspace_mb=workspace,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        force=force,
        prune=prune,
        timing_cache=_cache_folder(),
    )
    shapes = ShapeOptions(workload=workload, profiles=profiles, max_profiles=max_profiles, max_tokens=max_tokens)
    result = build_engines(bundle, options, shapes, progress=TerminalProgress())
    for reason in result.shapes.reasons:
        err.print(f"[dim]{escape(reason)}[/]")
    if as_json:
        engines = [_engine_document(engine.record, built=engine.built) for engine in result.engines]
        pruned = [{"key": record.key, "path": record.spec.path} for record in result.pruned]
        print_json({"bundle": str(bundle), "engines": engines, "pruned": pruned})
        return
    built = sum(engine.built for engine in result.engines)
    removed = f", {len(result.pruned)} removed" if prune else ""
    counts = f"{built} built, {len(result.engines) - built} there already{removed}"
    out.print(f"{counts}. Next: crossforge inspect {escape(str(bundle))}")


def _choose_precision(bundle: Path) -> Precision:
    """fp16 where the bundle has it; otherwise fp32, and that is said."""
    refuse_hub(bundle, "build")
    if Precision.FP16 in Bundle.open(bundle).manifest.variants:
        return Precision.FP16
    fix = f"crossforge quantize {escape(str(bundle))} --precision fp16"
    err.print(f"The bundle has no fp16 variant, so fp32 is built. For fp16: {fix}", soft_wrap=True)
    return Precision.FP32


def _parse_precision(text: str) -> Precision:
    try:
        return Precision(text)
    except ValueError:
        raise InputError("unknown precision", got=repr(text), allowed="fp16, int8_qdq, fp32") from None


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "crossforge"


def _engine_document(record: EngineRecord, *, built: bool) -> dict[str, object]:
    """What ``--json`` says of an engine."""
    spec = record.spec
    return {
        "key": record.key,
        "target": spec.target,
        "precision": spec.precision,
        "path": spec.path,
        "profiles": spec.profiles,
        "built": built,
        "backend": spec.backend,
        "compiler_version": spec.compiler_version,
        "size_bytes": record.engine.size_bytes,
        "build_seconds": record.build_seconds,
    }
