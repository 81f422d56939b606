"""Making a bundle's variants: write a model file, measure it through the runtime, judge it, repair it, record it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from onnx import ModelProto

from crossforge.export.calibration import calibration_batches, read_calibration
from crossforge.export.onnx import EXTERNAL_DATA_THRESHOLD_BYTES, opset_of, save_onnx
from crossforge.export.pairs import flatten, verification_pairs
from crossforge.export.parity import GATES, Gate, compare_logits, describe_moved, describe_parity
from crossforge.export.passes import fuse_for_cpu
from crossforge.export.passes.fp16 import convert_fp16
from crossforge.export.passes.fp16_overflow import find_overflows
from crossforge.export.passes.rounding import LEVELS, REDUCED_LEVELS
from crossforge.export.quantization import INT8_SETTINGS, Int8Recipe, prepare_int8
from crossforge.export.repair import Repair, find_repair
from crossforge.profiles import GateError, NonFiniteLogitsError, ParityReport, Precision, Scoring, Variant
from crossforge.profiles.precision import EXACT_INT8_INSTRUCTION_SETS
from crossforge.runtime.activation import Floats
from crossforge.runtime.batching import Batch
from crossforge.runtime.machine import inspect_machine, usable_cores
from crossforge.runtime.progress import Progress, Stage
from crossforge.runtime.records import QueryRecord
from crossforge.runtime.scoring import compute_logits
from crossforge.runtime.sessions.ort import OnnxRuntimeSession
from crossforge.runtime.tokenization import PairTokenizer

_FP32_TOLERANCE = 1e-3
_QUANTIZED_TOLERANCE_FACTOR = 2.0
_SMALLEST_QUANTIZED_TOLERANCE = 0.05
_SENSITIVITY_QUERIES = 4
"""Calibration queries that a layer's sensitivity is measured on; the search runs once a layer."""


@dataclass(frozen=True, kw_only=True)
class VariantOptions:
    """How variants are made and judged."""

    gates: Mapping[Precision, Gate] = field(default_factory=lambda: GATES)
    calibration: Path | None = None
    """Pairs in the run format that int8 is tuned on; None takes the built-in ones."""
    reduce_range: bool | None = None
    """Seven bits a weight instead of eight, so that no processor saturates; None does so where this one would."""
    repair: bool = True
    """When int8 fails its gate, leave the fewest layers in float32 with which it passes."""
    enforce_gates: bool = True
    """False writes variants that fail too; their manifest entry says so, and ``auto`` never takes them."""
    external_data_threshold_bytes: int = EXTERNAL_DATA_THRESHOLD_BYTES


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """A variant's file, and how it did."""

    precision: Precision
    path: Path
    files: tuple[Path, ...]
    opset: int
    logits: Floats
    parity: ParityReport


class VariantMaker:
    """Makes the variants of one bundle, all judged on the verification pairs.

    Args:
        folder: The bundle's folder, being written.
        tokenizer: The bundle's tokenizer.
        scoring: What the logits mean.
        pad_token_id: Fills rows up to a batch's length.
        options: How variants are made and judged.
        progress: Told of each stage.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: PairTokenizer,
        scoring: Scoring,
        *,
        pad_token_id: int,
        options: VariantOptions,
        progress: Progress,
    ) -> None:
        self._folder = folder
        self._tokenizer = tokenizer
        self._scoring = scoring
        self._pad_token_id = pad_token_id
        self._options = options
        self._progress = progress
        self.records = verification_pairs()
        self.variants: dict[Precision, Variant] = {}
        exact = bool(set(EXACT_INT8_INSTRUCTION_SETS) & set(inspect_machine().instruction_sets))
        self._reduce_range = not exact if options.reduce_range is None else options.reduce_range

    def add_fp32(self, graph: ModelProto, reference: Floats) -> Floats:
        """Add the float32 variant, judged against PyTorch's logits.

        Returns:
            Its logits on the verification pairs, float32 [pairs, labels]: the reference of every other variant.

        Raises:
            GateError: It does not reproduce them.
        """
        measured = self._measure(Precision.FP32, graph, reference, against="pytorch")
        self._accept(measured, reference)
        return measured.logits

    def add_int8(self, graph: ModelProto, reference: Floats) -> None:
        """Add the int8 variant made of a float32 graph, judged against that graph's logits, repaired if it must be.

        Raises:
            GateError: It ranks differently, whatever is left in float32.
        """
        with self._progress.stage("quantize to int8") as stage:
            records = read_calibration(self._options.calibration)
            recipe = prepare_int8(
                graph, self._batches(graph, records), levels=REDUCED_LEVELS if self._reduce_range else LEVELS
            )
            quantized = recipe.apply()
            stage.note = "; ".join(quantized.notes)
        settings = {**INT8_SETTINGS, "reduce_range": self._reduce_range}
        measured = self._measure(Precision.INT8, fuse_for_cpu(quantized.model).model, reference, against="fp32")
        if self._options.repair and self._options.enforce_gates and not measured.parity.passed:
            repair = self._repair(recipe, graph, reference, records)
            settings = {**settings, "layers_kept_fp32": ", ".join(repair.keep_fp32)}
            repaired = fuse_for_cpu(recipe.apply(keep_fp32=repair.keep_fp32).model).model
            measured = self._measure(Precision.INT8, repaired, reference, against="fp32", what="repaired int8")
        self._accept(measured, reference, settings=settings)

    def add_fp16(self, graph: ModelProto, reference: Floats) -> None:
        """Add the float16 variant made of a float32 graph, judged against that graph's logits.

        Calibration pairs show which nodes leave float16's range; those stay in float32, and the manifest lists them.

        Raises:
            GateError: It ranks differently.
        """
        with self._progress.stage("convert to fp16") as stage:
            records = read_calibration(self._options.calibration)
            overflows = find_overflows(graph, self._batches(graph, records))
            converted = convert_fp16(graph, keep_fp32_nodes=overflows)
            stage.note = "; ".join(converted.notes)
        settings = {"method": "fp16", "nodes_kept_fp32_for_range": ", ".join(overflows)}
        measured = self._measure(Precision.FP16, converted.model, reference, against="fp32")
        self._accept(measured, reference, settings=settings)

    def _batches(self, graph: ModelProto, records: Sequence[QueryRecord]) -> list[Batch]:
        names = [value.name for value in graph.graph.input]
        return calibration_batches(records, self._tokenizer, pad_token_id=self._pad_token_id, input_names=names)

    def _repair(self, recipe: Int8Recipe, graph: ModelProto, reference: Floats, records: Sequence[QueryRecord]) -> Repair:
        few = records[:_SENSITIVITY_QUERIES]
        everything = frozenset(recipe.products)
        with self._progress.stage("find sensitive layers") as stage:
            expected = self._run_model(graph, few, Stage())

            def loss(quantized: frozenset[str]) -> float:
                model = recipe.apply(keep_fp32=everything - quantized, quantize_embeddings=False).model
                return float(np.abs(self._run_model(model, few, Stage()) - expected).mean())

            def passes(kept: frozenset[str]) -> bool:
                model = recipe.apply(keep_fp32=kept).model
                logits = self._run_model(model, self.records, Stage())
                return self._judge(Precision.INT8, logits, reference, against="fp32").passed

            repair = find_repair(recipe, loss, passes, stage=stage)
            stage.note = f"{len(repair.keep_fp32)} of {len(everything)} layers stay in float32"
        return repair

    def _gate(self, precision: Precision) -> Gate:
        return self._options.gates.get(precision, GATES[precision])

    def _judge(self, precision: Precision, logits: Floats, reference: Floats, *, against: str) -> ParityReport:
        return compare_logits(
            reference,
            logits,
            self.records,
            ranking_label=self._scoring.ranking_label,
            name=against,
            gate=self._gate(precision),
        )

    def _measure(
        self, precision: Precision, model: ModelProto, reference: Floats, *, against: str, what: str | None = None
    ) -> _Measured:
        """Write a variant, and measure the very file that was written."""
        path = self._folder / "onnx" / precision.file_name
        with self._progress.stage(f"verify {what or precision}") as stage:
            files = save_onnx(model, path, external_data_threshold_bytes=self._options.external_data_threshold_bytes)
            logits = self._run_file(path, self.records, stage)
            parity = self._judge(precision, logits, reference, against=against)
            size_bytes = sum(file.stat().st_size for file in files)
            stage.note = f"{size_bytes / 1e6:.1f} MB; {describe_parity(parity)}"
        return _Measured(
            precision=precision, path=path, files=tuple(files), opset=opset_of(model), logits=logits, parity=parity
        )

    def _accept(
        self,
        measured: _Measured,
        reference: Floats,
        *,
        settings: Mapping[str, str | int | float | bool] | None = None,
    ) -> None:
        """Record a variant, or refuse it."""
        precision, parity = measured.precision, measured.parity
        if not parity.passed and self._options.enforce_gates:
            moved = describe_moved(reference, measured.logits, self.records, ranking_label=self._scoring.ranking_label)
            raise GateError(
                f"the {precision} variant does not rank like {parity.reference}",
                got=describe_parity(parity) + moved,
                allowed=self._gate(precision).describe(),
                fix="Leave it out with --precision, or keep it for study with --no-gate. Nothing was written.",
            )
        if not np.isfinite(measured.logits).all():
            raise NonFiniteLogitsError(
                f"the {precision} variant answers NaN or infinity on the verification pairs", fix="Nothing was written."
            )
        is_fp32 = precision is Precision.FP32
        largest = _QUANTIZED_TOLERANCE_FACTOR * parity.max_abs_diff
        self.variants[precision] = Variant(
            path=measured.path.relative_to(self._folder).as_posix(),
            files=tuple(file.relative_to(self._folder).as_posix() for file in measured.files),
            opset=measured.opset,
            quantization=dict(settings or {}),
            instruction_sets=EXACT_INT8_INSTRUCTION_SETS if precision is Precision.INT8 and not self._reduce_range else (),
            golden_tolerance=_FP32_TOLERANCE if is_fp32 else max(_SMALLEST_QUANTIZED_TOLERANCE, largest),
            parity=parity,
        )

    def _run_model(self, model: ModelProto, records: Sequence[QueryRecord], stage: Stage) -> Floats:
        """Logits of a model that is not part of the bundle, float32 [pairs, labels]."""
        with tempfile.TemporaryDirectory(prefix="crossforge-") as folder:
            path = Path(folder) / "model.onnx"
            save_onnx(model, path, external_data_threshold_bytes=self._options.external_data_threshold_bytes)
            return self._run_file(path, records, stage)

    def _run_file(self, path: Path, records: Sequence[QueryRecord], stage: Stage) -> Floats:
        """Logits of a model file, as the runtime computes them, float32 [pairs, labels]."""
        labels = len(self._scoring.labels)
        pairs = self._tokenizer.encode_pairs(flatten(records))
        workers = usable_cores()
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            stage.advance(done, len(pairs))

        session = OnnxRuntimeSession(path, labels=labels)
        with ThreadPoolExecutor(workers) as executor:
            logits, _ = compute_logits(
                session,
                pairs,
                template=self._tokenizer.template,
                pad_token_id=self._pad_token_id,
                labels=labels,
                workers=workers,
                executor=executor,
                on_batch=advance,
            )
        session.close()
        return logits
