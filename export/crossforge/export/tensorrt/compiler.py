"""Compiling one engine. Both backends take the same way; where they part, it says so."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossforge.export.tensorrt.monitor import describe_failure, make_logger, make_monitor
from crossforge.export.tensorrt.network import inputs_of, outputs_of, parse_network
from crossforge.export.tensorrt.timing import TimingCache
from crossforge.profiles import EngineBackend, EngineError, EngineSpec, EngineTensor, MachineError
from crossforge.runtime.progress import Stage

_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class CompiledEngine:
    """An engine in memory."""

    plan: memoryview
    """The serialized engine; keeps the compiler's buffer alive."""
    inputs: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]


def compile_engine(
    trt: Any, spec: EngineSpec, path: Path, *, labels: int, stage: Stage, timing_cache: TimingCache | None = None
) -> CompiledEngine:
    """Compile an ONNX file as a spec says.

    Args:
        trt: The package of ``spec.backend``.
        spec: What to build.
        path: The variant's ONNX file.
        labels: Columns that the logits must have.
        stage: Told of the steps.
        timing_cache: Read before and written after, where the backend times kernels.

    Raises:
        EngineError: The compiler cannot read the graph, or gives up on it.
        InputError: The graph is not a reranker with dynamic shapes.
        MachineError: The compiler cannot start here.
    """
    log = make_logger(trt)
    try:
        builder = trt.Builder(log)
    except (TypeError, RuntimeError) as error:  # the binding's words for a null pointer
        reason = "; ".join(log.errors) or error
        raise MachineError(f"{spec.backend} cannot start here ({reason})", fix="Run `crossforge doctor`.") from error
    network = parse_network(trt, builder, log, path, labels=labels)
    config = builder.create_builder_config()
    _configure(trt, config, spec)
    _add_profiles(builder, config, network, spec)
    if timing_cache is not None:
        timing_cache.load_into(config)
    monitor = make_monitor(trt, stage)
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if monitor.interruption is not None:
        raise monitor.interruption
    if plan is None:
        what = f"{spec.backend} {spec.compiler_version} cannot compile the {spec.precision} variant for {spec.target}"
        raise describe_failure(what, log.errors)
    if timing_cache is not None:
        timing_cache.save_from(config)
    return CompiledEngine(plan=memoryview(plan), inputs=inputs_of(network), outputs=outputs_of(network))


def _configure(trt: Any, config: Any, spec: EngineSpec) -> None:
    # On by default. The parity figures of float32 arithmetic are those of all its 24 bits.
    config.clear_flag(trt.BuilderFlag.TF32)
    if spec.builder_level is not None:
        config.builder_optimization_level = spec.builder_level
    if spec.workspace_mb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, spec.workspace_mb * _MIB)
    if spec.backend is EngineBackend.TENSORRT_RTX:
        config.num_compute_capabilities = len(spec.targets)
        for i, target in enumerate(spec.targets):
            if not config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), i):
                raise EngineError(f"{spec.backend} does not accept the target", got=target)
        return
    if spec.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if spec.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS


def _add_profiles(builder: Any, config: Any, network: Any, spec: EngineSpec) -> None:
    for number, shapes in enumerate(spec.profiles):
        batch, sequence = shapes.batch_size, shapes.sequence_length
        profile = builder.create_optimization_profile()
        for tensor in inputs_of(network):
            smallest, likely, largest = (
                (batch.min, sequence.min),
                (batch.opt, sequence.opt),
                (batch.max, sequence.max),
            )
            profile.set_shape(tensor.name, smallest, likely, largest)
        if config.add_optimization_profile(profile) != number:
            raise EngineError(f"{spec.backend} does not accept profile {number}", got=shapes)
