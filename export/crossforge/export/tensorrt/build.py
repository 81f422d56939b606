"""Building a bundle's engines: choose the shapes, compile what is not there, record it."""

from __future__ import annotations

import platform
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossforge.export.tensorrt.backend import (
    TargetPlan,
    ahead_of_time_targets,
    choose_backend,
    find_needed_device,
    installed_backends,
    load_backend,
    plan_targets,
)
from crossforge.export.tensorrt.compiler import compile_engine
from crossforge.export.tensorrt.device import Device, find_device
from crossforge.export.tensorrt.network import refuse_foreign_operators
from crossforge.export.tensorrt.options import BuildOptions
from crossforge.export.tensorrt.shapes import ShapeChoice, ShapeOptions, choose_shapes
from crossforge.export.tensorrt.store import find_engine, prune_engines, store_engine
from crossforge.export.tensorrt.timing import TimingCache
from crossforge.profiles import (
    ENGINE_OF,
    CrossforgeWarning,
    EngineBackend,
    EngineRecord,
    EngineSpec,
    ExecutionProvider,
    InputError,
    Manifest,
    OptimizationProfile,
    Precision,
    Variant,
)
from crossforge.runtime.bundle import TOKENIZER_NAME, Bundle, refuse_hub
from crossforge.runtime.progress import Progress, Silent

BUILDABLE = (Precision.FP16, Precision.INT8_QDQ, Precision.FP32)

_FOR_OTHERS = {
    Precision.INT8: ("ONNX Runtime on the CPU", "For int8 on a GPU: crossforge quantize BUNDLE --precision int8_qdq"),
    Precision.INT8_NATIVE: ("the native engine", "For int8 on a GPU: crossforge quantize BUNDLE --precision int8_qdq"),
    Precision.FP16_CUDA: ("ONNX Runtime on CUDA", "Build fp16, which TensorRT fuses itself."),
    **{
        precision: ("OpenVINO", "For a GPU: crossforge quantize BUNDLE --precision fp16, or int8_qdq")
        for precision, provider in ENGINE_OF.items()
        if provider is ExecutionProvider.OPENVINO
    },
}


@dataclass(frozen=True, kw_only=True)
class BuiltEngine:
    """An engine of the bundle."""

    record: EngineRecord
    built: bool
    """False if it was there already."""


@dataclass(frozen=True, kw_only=True)
class BuildResult:
    """What a build leaves behind."""

    engines: tuple[BuiltEngine, ...]
    """In the order of the targets."""
    shapes: ShapeChoice
    pruned: tuple[EngineRecord, ...] = ()
    """Engines that were removed."""


def build_engines(
    bundle: str | Path,
    options: BuildOptions | None = None,
    shapes: ShapeOptions | None = None,
    *,
    progress: Progress | None = None,
    find_device: Callable[[], Device] = find_device,
    load_backend: Callable[[EngineBackend], Any] = load_backend,
) -> BuildResult:
    """Make a variant's engines for each target, unless they are in the bundle already.

    Each engine is recorded as soon as it is compiled: if a later one fails, the earlier ones stay.

    Args:
        bundle: The bundle's folder.
        options: What to build, and how.
        shapes: Where the optimization profiles come from.
        progress: Told of each stage.
        find_device: How this machine's GPU is found.
        load_backend: How a compiler is imported.

    Raises:
        BundleError: There is no bundle, or a file that the build reads is damaged.
        EngineError: A compiler gave up.
        InputError: The bundle has no such variant, a target is unknown, or the shapes cannot be used.
        MachineError: A GPU or a package is missing.
    """
    options, progress = options or BuildOptions(), progress or Silent()
    refuse_hub(bundle, "build")
    opened = Bundle.open(bundle)
    variant = select_variant(opened.manifest, options.precision)
    backend = choose_backend(options, installed_backends())
    device = find_needed_device(options, backend, find_device)  # before the package, which would not help without it
    trt = load_backend(backend)
    plans = plan_targets(options, backend, ahead_of_time_targets(trt), device)
    with progress.stage("choose profiles") as stage:
        opened.check((TOKENIZER_NAME, *variant.files))
        refuse_foreign_operators(opened.path / variant.path)
        choice = choose_shapes(opened, shapes or ShapeOptions())
        edges = ", ".join(str(profile.sequence_length.max) for profile in choice.profiles)
        stage.note = f"{len(choice.profiles)}, up to {edges} tokens"
    engines = []
    for plan in plans:
        spec = make_spec(opened.manifest, choice.profiles, plan, options, backend, compiler_version=trt.__version__)
        with progress.stage(f"build {spec.precision} for {spec.target}") as stage:
            record = None if options.force else find_engine(opened.path, spec)
            built = record is None
            if record is None:
                cache = _timing_cache(options, spec)
                start = time.perf_counter()
                compiled = compile_engine(
                    trt,
                    spec,
                    opened.path / variant.path,
                    labels=opened.manifest.output_columns,
                    stage=stage,
                    timing_cache=cache,
                )
                record = store_engine(opened.path, spec, compiled, build_seconds=time.perf_counter() - start)
            stage.note = f"{record.engine.size_bytes / 1e6:.1f} MB, {record.key}" + ("" if built else ": is there already")
        engines.append(BuiltEngine(record=record, built=built))
    pruned: tuple[EngineRecord, ...] = ()
    if options.prune:
        with progress.stage("prune engines") as stage:
            pruned = prune_engines(opened.path)
            size_bytes = sum(record.engine.size_bytes for record in pruned)
            stage.note = f"{len(pruned)} of older variants removed, {size_bytes / 1e6:.1f} MB"
    return BuildResult(engines=tuple(engines), shapes=choice, pruned=pruned)


def select_variant(manifest: Manifest, precision: Precision) -> Variant:
    """The variant to compile.

    Raises:
        InputError: TensorRT cannot run the precision, or the bundle does not have it.

    Warns:
        CrossforgeWarning: It failed its parity gate.
    """
    allowed = ", ".join(BUILDABLE)
    if precision not in BUILDABLE:
        where, fix = _FOR_OTHERS[precision]
        raise InputError(
            f"the {precision} variant is for {where} and holds what TensorRT does not know",
            got=precision,
            allowed=allowed,
            fix=fix,
        )
    variant = manifest.variants.get(precision)
    if variant is None:
        present = ", ".join(name for name in BUILDABLE if name in manifest.variants)
        raise InputError(
            f"the bundle has no {precision} variant",
            got=precision,
            allowed=present or "none of its variants",
            fix=f"Add it: crossforge quantize BUNDLE --precision {precision}"
            + (f", or build another with --precision {present.partition(',')[0]}" if present else ""),
        )
    if not variant.parity.passed:
        warnings.warn(
            f"the {precision} variant failed its parity gate when it was made: its engines rank differently",
            CrossforgeWarning,
            stacklevel=2,
        )
    return variant


def make_spec(
    manifest: Manifest,
    profiles: tuple[OptimizationProfile, ...],
    plan: TargetPlan,
    options: BuildOptions,
    backend: EngineBackend,
    *,
    compiler_version: str,
) -> EngineSpec:
    """Everything that decides one engine."""
    return EngineSpec(
        precision=options.precision,
        model={name: manifest.files[name].sha256 for name in manifest.variants[options.precision].files},
        profiles=profiles,
        backend=backend,
        compiler_version=compiler_version,
        targets=plan.targets,
        gpu=plan.gpu,
        platform=f"{platform.system()}-{platform.machine()}".lower(),
        builder_level=options.builder_level,
        workspace_mb=options.workspace_mb,
        version_compatible=options.version_compatible,
        hardware_compatible=options.hardware_compatible,
    )


def _timing_cache(options: BuildOptions, spec: EngineSpec) -> TimingCache | None:
    if options.timing_cache is None or spec.backend is not EngineBackend.TENSORRT:
        return None
    gpu = spec.gpu or spec.target
    return TimingCache.of(options.timing_cache, compiler_version=spec.compiler_version, gpu=gpu)
