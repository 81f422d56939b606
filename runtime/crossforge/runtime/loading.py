"""From a bundle and a plan to a session that runs: the edge where choices meet the machine."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from crossforge.profiles import (
    EVERYTHING_OFF,
    BundleError,
    EngineError,
    EngineRecord,
    ExecutionProvider,
    GpuOptions,
    Manifest,
    OptimizationProfile,
    Precision,
    ProviderFallbackWarning,
    ProviderUnavailableError,
)
from crossforge.runtime.bundle import TOKENIZER_NAME, Bundle
from crossforge.runtime.machine import Machine, usable_cores
from crossforge.runtime.precision import PrecisionChoice, select_precision
from crossforge.runtime.providers import ProviderPlan
from crossforge.runtime.sessions import Session
from crossforge.runtime.sessions.native import NativeSession
from crossforge.runtime.sessions.openvino import OpenVinoSession
from crossforge.runtime.sessions.ort import OnnxRuntimeSession


@dataclass(frozen=True, kw_only=True)
class OpenedSession:
    """A session, and what it takes."""

    session: Session
    choice: PrecisionChoice
    """The variant that it runs."""
    profiles: tuple[OptimizationProfile, ...] = ()
    """The shapes that it takes; none if it takes any."""


def open_session(
    bundle: Bundle,
    plan: ProviderPlan,
    precision: str,
    machine: Machine,
    *,
    strict: bool,
    check_files: bool,
    engine: EngineRecord | None = None,
    lanes: int | None = None,
    allow_host_code: bool = False,
    gpu: GpuOptions = EVERYTHING_OFF,
    meanwhile: Callable[[], object] = lambda: None,
) -> OpenedSession:
    """Open the session of the first planned provider that loads.

    Args:
        bundle: What to run.
        plan: The providers to try; has at least one.
        precision: ``auto`` or a variant's name.
        machine: The facts that the choice of a variant rests on.
        strict: Raise when the first provider fails, instead of trying the next.
        check_files: Compare what is read with the manifest.
        engine: The TensorRT engine to run, if that provider is planned.
        lanes: Batches that may run at the same time, where a session is made for a number of them; None takes one on a GPU
            and one a core on the processor.
        allow_host_code: Load an engine that embeds code for the host.
        gpu: How batches run on a GPU.
        meanwhile: Called while a variant's file loads, on the calling thread, once its digests are compared; again for the
            next provider. It may hold Python's lock: engines load without it.

    Raises:
        InputError: The bundle has no such variant.
        BundleError: A file is missing or altered, or the model does not suit the manifest.
        EngineError: No planned provider loads the model.

    Warns:
        ProviderFallbackWarning: A provider failed to load and the next one runs.
    """
    failures: list[str] = []
    for provider in plan.candidates:
        try:
            if provider is ExecutionProvider.TENSORRT:
                if engine is None:
                    raise ProviderUnavailableError("no TensorRT engine was chosen")
                opened = _open_engine(
                    bundle,
                    engine,
                    lanes=lanes or 1,
                    check_files=check_files,
                    allow_host_code=allow_host_code,
                    cuda_graphs=gpu.cuda_graphs,
                )
            else:
                choice = select_precision(precision, bundle.manifest, provider, machine)
                session = _open_checked(
                    bundle,
                    choice.precision,
                    provider,
                    lanes=lanes,
                    check_files=check_files,
                    gpu=gpu,
                    meanwhile=meanwhile,
                )
                opened = OpenedSession(session=session, choice=choice)
        except (EngineError, ProviderUnavailableError) as error:
            if strict or provider is plan.candidates[-1]:
                raise
            failures.append(f"not {provider}: {error}")
            continue
        if failures:
            warnings.warn(f"running on {provider} ({'; '.join(failures)})", ProviderFallbackWarning, stacklevel=4)
        return opened
    raise ValueError("the provider plan has no candidates")


def _open_engine(
    bundle: Bundle, engine: EngineRecord, *, lanes: int, check_files: bool, allow_host_code: bool, cuda_graphs: bool
) -> OpenedSession:
    """Load an engine. Its file is compared first: TensorRT trusts what it reads."""
    from crossforge.runtime.sessions.tensorrt import open_tensorrt_session  # a start on the CPU should not pay for it

    names = (TOKENIZER_NAME, engine.spec.path, engine.spec.record_path)
    bundle.provide(names)
    if check_files:
        bundle.check(names)
    session = open_tensorrt_session(
        bundle.path / engine.spec.path, engine, lanes=lanes, allow_host_code=allow_host_code, cuda_graphs=cuda_graphs
    )
    try:
        _check_inputs(bundle.path / engine.spec.path, session, bundle.manifest)
    except BundleError:
        session.close()
        raise
    choice = PrecisionChoice(precision=engine.spec.precision, reasons=())
    return OpenedSession(session=session, choice=choice, profiles=session.profiles)


def _open_checked(
    bundle: Bundle,
    precision: Precision,
    provider: ExecutionProvider,
    *,
    lanes: int | None,
    check_files: bool,
    gpu: GpuOptions,
    meanwhile: Callable[[], object],
) -> Session:
    """Load a variant on another thread, while this one compares the files' digests and does what else there is.

    An engine loads without Python's lock, and digests are computed without it. What holds the lock comes behind them, or it
    could keep the other thread from the engine.
    """
    names = bundle.files_to_run(precision)
    bundle.provide(names)
    path = bundle.path / bundle.manifest.variants[precision].path
    with ThreadPoolExecutor(1, thread_name_prefix="crossforge-open") as opener:
        opening = opener.submit(
            open_model, path, provider, precision=precision, labels=bundle.manifest.output_columns, lanes=lanes, gpu=gpu
        )
        try:
            if check_files:
                bundle.check(names)  # a damaged file explains a failure better than the engine does
            meanwhile()
        except BaseException:
            with suppress(EngineError, BundleError, ProviderUnavailableError):
                opening.result().close()
            raise
        session = opening.result()
    try:
        _check_inputs(path, session, bundle.manifest)
    except BundleError:
        session.close()
        raise
    return session


def open_model(
    path: Path,
    provider: ExecutionProvider,
    *,
    labels: int,
    precision: Precision = Precision.FP32,
    lanes: int | None = None,
    gpu: GpuOptions = EVERYTHING_OFF,
) -> Session:
    """Load a variant's file on a provider that is not TensorRT.

    Args:
        path: The file.
        provider: Where it runs.
        labels: Columns that the output must have.
        precision: The variant: one file may serve two.
        lanes: Batches that may run at the same time, where a session is made for a number of them; None takes one a core.
        gpu: How batches run on a GPU.

    Raises:
        MachineError: The provider cannot be had.
        BundleError: The file is not a reranker with ``labels`` outputs.
        EngineError: It does not load.
    """
    if provider is ExecutionProvider.NATIVE:
        return NativeSession(path, labels=labels)
    if provider is ExecutionProvider.OPENVINO:
        return OpenVinoSession(path, precision=precision, labels=labels, streams=lanes or usable_cores())
    return OnnxRuntimeSession(
        path,
        provider=provider,
        labels=labels,
        io_binding=gpu.io_binding and provider is ExecutionProvider.CUDA,
        memory_limit_mb=gpu.memory_limit_mb,
    )


def _check_inputs(path: Path, session: Session, manifest: Manifest) -> None:
    if set(session.input_names) != set(manifest.input_names):
        raise BundleError(
            f"{path} takes other inputs than the manifest says",
            got=", ".join(session.input_names),
            allowed=", ".join(manifest.input_names),
        )
