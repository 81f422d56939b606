"""Making a bundle's variants: write a model file, measure it through the runtime, judge it, repair it, record it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from onnx import ModelProto

from crossforge.export.dynamic_quantization import DynamicRecipe, prepare_int8
from crossforge.export.evidence import Evidence
from crossforge.export.judge import Measured, VariantJudge
from crossforge.export.native import check_architecture, make_encoder
from crossforge.export.onnx import opset_of, save_onnx, weight_bytes
from crossforge.export.openvino import check_openvino, compress_weights, describe_bf16, quantize_static
from crossforge.export.options import Int8Recipe, VariantOptions
from crossforge.export.passes import fuse_for_cpu, fuse_for_cuda
from crossforge.export.passes.fp16 import convert_fp16
from crossforge.export.passes.fp16_overflow import find_overflows
from crossforge.export.passes.int8_static import ActivationType
from crossforge.export.passes.rounding import LEVELS, REDUCED_LEVELS
from crossforge.export.recipe import Recipe, Settings
from crossforge.export.repair import find_repair
from crossforge.export.reports import VariantReport
from crossforge.export.runner import make_runner
from crossforge.export.static_quantization import prepare_int8_static
from crossforge.profiles import (
    RUNS_ONLY,
    Embedding,
    ExecutionProvider,
    GateError,
    InputError,
    Precision,
    ProviderUnavailableError,
    Scoring,
    Variant,
)
from crossforge.profiles.precision import EXACT_INT8_INSTRUCTION_SETS
from crossforge.runtime.activation import Floats
from crossforge.runtime.machine import inspect_machine
from crossforge.runtime.progress import Progress
from crossforge.runtime.providers import why_not
from crossforge.runtime.records import QueryRecord
from crossforge.runtime.sessions.native.encoder_file import write_encoder
from crossforge.runtime.tokenization import PairTokenizer

_SENSITIVITY_QUERIES = 4
"""Calibration queries that a layer's sensitivity is measured on; the search runs once a layer."""


class VariantMaker:
    """Makes the variants of one bundle, all judged on the verification pairs.

    Args:
        folder: The bundle's folder, being written.
        tokenizer: The bundle's tokenizer.
        scoring: What the logits mean.
        pad_token_id: Fills rows up to a batch's length.
        options: How variants are made and judged.
        evidence: What they are tuned on and judged by.
        progress: Told of each stage.
        embedding: What a bi-encoder makes of texts; None of a cross-encoder.

    Raises:
        InputError: There are judgements, and no label of the model ranks.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: PairTokenizer,
        scoring: Scoring,
        *,
        pad_token_id: int,
        options: VariantOptions,
        evidence: Evidence,
        progress: Progress,
        embedding: Embedding | None = None,
    ) -> None:
        self._folder = folder
        self._options = options
        self._progress = progress
        self._embedding = embedding
        self._runner = make_runner(
            tokenizer,
            scoring,
            embedding,
            pad_token_id=pad_token_id,
            external_data_threshold_bytes=options.external_data_threshold_bytes,
        )
        self._calibration = evidence.calibration
        self._machine = inspect_machine()
        exact = bool(set(EXACT_INT8_INSTRUCTION_SETS) & set(self._machine.instruction_sets))
        self._reduce_range = not exact if options.reduce_range is None else options.reduce_range
        self._judge = VariantJudge(
            folder, self._runner, scoring, options, evidence=evidence, reduce_range=self._reduce_range
        )
        self._dynamic: tuple[ModelProto, bool, DynamicRecipe] | None = None

    @property
    def records(self) -> Sequence[QueryRecord]:
        """The verification queries with their passages."""
        return self._judge.records

    @property
    def variants(self) -> dict[Precision, Variant]:
        """Those that were accepted, in the order of their making."""
        return self._judge.variants

    @property
    def reports(self) -> dict[Precision, VariantReport]:
        """What each verdict rests on."""
        return self._judge.reports

    def score(self, model: ModelProto) -> Floats:
        """A model's logits on the verification pairs, float32 [pairs, labels]."""
        return self._runner.run(model, self.records)

    def add_fp32(self, graph: ModelProto, reference: Floats) -> Floats:
        """Add the float32 variant, judged against PyTorch's logits.

        Returns:
            Its logits on the verification pairs, float32 [pairs, labels]: the reference of every other variant.

        Raises:
            GateError: It does not reproduce them.
        """
        measured = self._measure(Precision.FP32, graph, reference, against="pytorch")
        self._judge.accept(measured, {})
        return measured.logits

    def add(self, precision: Precision, graph: ModelProto, reference: Floats) -> None:
        """Add a variant made of the float32 graph, judged against that graph's logits.

        Raises:
            GateError: It ranks differently, whatever is left in float32.
            InputError: The precision is float32, or the graph is not.
        """
        if precision is Precision.FP16:
            self._add_fp16(graph, reference)
        elif precision is Precision.FP16_CUDA:
            self._add_fp16_cuda(graph, reference)
        elif precision is Precision.INT8_NATIVE:
            self._add_native(graph, reference)
        elif precision in RUNS_ONLY[ExecutionProvider.OPENVINO] and precision is not Precision.FP32:
            self._add_openvino(precision, graph, reference)
        elif precision is Precision.FP32:
            raise InputError("fp32 is what the other variants are made of", got=precision)
        else:
            self._add_int8(precision, graph, reference)

    def _add_fp16(self, graph: ModelProto, reference: Floats) -> None:
        """Calibration pairs show which nodes leave float16's range; those stay in float32, and the manifest lists them."""
        with self._progress.stage("convert to fp16") as stage:
            overflows = find_overflows(graph, self._runner.batches(graph, self._calibration))
            converted = convert_fp16(graph, keep_fp32_nodes=overflows)
            if not converted.changed:
                raise InputError(
                    f"nothing of this model can be converted to {Precision.FP16} ({'; '.join(converted.notes)})",
                    fix="Leave it out of --precision: it would be float32 by another name.",
                )
            stage.note = "; ".join(converted.notes)
        settings = {"method": "fp16", "nodes_kept_fp32_for_range": ", ".join(overflows)}
        self._judge.accept(self._measure(Precision.FP16, converted.model, reference), settings)

    def _add_fp16_cuda(self, graph: ModelProto, reference: Floats) -> None:
        """Fused for CUDA, then float16. Judged on CUDA where it runs, else on the CPU; the manifest says which.

        What is inside a fused attention can neither be measured nor be left in float32, so the plain graph must fit in
        float16 everywhere.
        """
        precision = Precision.FP16_CUDA
        with self._progress.stage(f"convert to {precision}") as stage:
            overflows = find_overflows(graph, self._runner.batches(graph, self._calibration))
            if overflows:
                raise GateError(
                    f"{len(overflows)} nodes leave float16's range on the calibration pairs, so attention must not be fused",
                    got=", ".join(overflows[:3]) + (", ..." if len(overflows) > 3 else ""),
                    fix="Use fp16, which keeps them in float32. Nothing was written.",
                )
            fused = fuse_for_cuda(graph)
            if not fused.changed:
                raise InputError(
                    f"nothing of this model can be fused for CUDA ({'; '.join(fused.notes)})",
                    fix="Use fp16: it is the same.",
                )
            converted = convert_fp16(fused.model)
            provider = ExecutionProvider.CPU if why_not(ExecutionProvider.CUDA, self._machine) else ExecutionProvider.CUDA
            stage.note = "; ".join((*fused.notes, *converted.notes, f"judged on {provider}"))
        settings = {"method": "fp16 of a graph fused for CUDA", "fusion": "; ".join(fused.notes), "judged_on": str(provider)}
        self._judge.accept(self._measure(precision, converted.model, reference, provider=provider), settings)

    def _add_int8(self, precision: Precision, graph: ModelProto, reference: Floats) -> None:
        """Quantize, and leave in float32 what has to stay there to pass the gate."""
        with self._progress.stage(f"quantize to {precision}") as stage:
            recipe = self._prepare(precision, graph)
            if not recipe.products:
                raise InputError(
                    f"nothing of this model can be quantized to {precision}",
                    got="no linear layer over tokens with a constant weight",
                    fix="Leave it out of --precision: it would be float32 by another name.",
                )
            quantized = recipe.apply()
            stage.note = "; ".join(quantized.notes)
        model = _finish(precision, quantized.model)
        settings = {**recipe.settings, "reduce_range": self._reduce_range}
        measured = self._measure(precision, model, reference)
        if self._options.repair and self._options.enforce_gates and not measured.report.parity.passed:
            model, cost = self._repair(precision, recipe, graph, reference, unrepaired=model)
            settings = {**settings, **cost}
            measured = self._measure(precision, model, reference, what=f"repaired {precision}")
        self._judge.accept(measured, settings)

    def _add_native(self, graph: ModelProto, reference: Floats) -> None:
        """Write int8's weights for the native engine, which has to be there: what is not measured is not shipped."""
        config = json.loads((self._folder / "config.json").read_text(encoding="utf-8"))
        if self._embedding is not None:
            raise InputError(
                "the native engine computes rerankers alone, with their pooler and classifier",
                got="a bi-encoder",
                fix=f"Leave {Precision.INT8_NATIVE} out; {Precision.INT8} runs everywhere.",
            )
        check_architecture(config)
        if reason := why_not(ExecutionProvider.NATIVE, self._machine):
            raise ProviderUnavailableError(f"the native engine cannot measure an {Precision.INT8_NATIVE} variant: {reason}")
        path = self._folder / Precision.INT8_NATIVE.path
        with self._progress.stage(f"quantize to {Precision.INT8_NATIVE}") as stage:
            reduce_range = bool(self._options.reduce_range)  # its kernels saturate on no processor
            recipe = self._prepare_dynamic(graph, reduce_range=reduce_range)
            encoder = make_encoder(recipe, config)
            write_encoder(encoder, path)
            stage.note = f"{encoder.shape.layers} layers of {encoder.shape.hidden} channels, {encoder.shape.heads} heads"
        with self._progress.stage(f"verify {Precision.INT8_NATIVE}") as stage:
            measured = self._judge.measure(
                Precision.INT8_NATIVE, path, reference, stage, files=[path], provider=ExecutionProvider.NATIVE
            )
        self._judge.accept(measured, {**recipe.settings, "reduce_range": reduce_range})

    def _add_openvino(self, precision: Precision, graph: ModelProto, reference: Floats) -> None:
        """Write a variant for OpenVINO; bfloat16 is the float32 file computed in another way, and judged like any other."""
        check_openvino(precision, self._machine)
        path = self._folder / precision.path
        with self._progress.stage(f"quantize to {precision}") as stage:
            if precision is Precision.BF16_OPENVINO:
                made = describe_bf16(path)
            elif precision is Precision.INT8_OPENVINO:
                batches = self._runner.batches(graph, self._calibration)
                made = quantize_static(graph, batches, path, reduce_range=self._reduce_range)
            else:
                made = compress_weights(graph, path)
            stage.note = made.note
        with self._progress.stage(f"verify {precision}") as stage:
            measured = self._judge.measure(
                precision, path, reference, stage, files=made.files, provider=ExecutionProvider.OPENVINO
            )
        self._judge.accept(measured, made.settings)

    def _prepare_dynamic(self, graph: ModelProto, *, reduce_range: bool) -> DynamicRecipe:
        """The recipe of int8, prepared once for all variants of one graph and range."""
        if self._dynamic is None or self._dynamic[0] is not graph or self._dynamic[1] != reduce_range:
            levels = REDUCED_LEVELS if reduce_range else LEVELS
            batches = self._runner.batches(graph, self._calibration)
            self._dynamic = (graph, reduce_range, prepare_int8(graph, batches, levels=levels))
        return self._dynamic[2]

    def _prepare(self, precision: Precision, graph: ModelProto) -> Recipe:
        if precision is Precision.INT8 and self._options.recipe is Int8Recipe.DYNAMIC:
            return self._prepare_dynamic(graph, reduce_range=self._reduce_range)
        levels = REDUCED_LEVELS if self._reduce_range else LEVELS
        batches = self._runner.batches(graph, self._calibration)
        return prepare_int8_static(
            graph,
            batches,
            activations=ActivationType.INT8 if precision is Precision.INT8_QDQ else ActivationType.UINT8,
            method=self._options.range_method,
            levels=levels,
        )

    def _repair(
        self, precision: Precision, recipe: Recipe, graph: ModelProto, reference: Floats, *, unrepaired: ModelProto
    ) -> tuple[ModelProto, Settings]:
        """Find the fewest layers to leave in float32, and what that costs."""
        few = self._calibration[:_SENSITIVITY_QUERIES]
        everything = frozenset(recipe.products)
        with self._progress.stage("find sensitive layers") as stage:
            expected = self._runner.run(graph, few)

            def loss(quantized: frozenset[str]) -> float:
                model = recipe.apply(keep_fp32=everything - quantized, quantize_embeddings=False).model
                return float(np.abs(self._runner.run(model, few) - expected).mean())

            def passes(kept: frozenset[str]) -> bool:
                logits = self._runner.run(recipe.apply(keep_fp32=kept).model, self.records)
                return self._judge.compare(precision, logits, reference).passed

            repair = find_repair(recipe.products, loss, passes, stage=stage)
            model = _finish(precision, recipe.apply(keep_fp32=repair.keep_fp32).model)
            added_bytes = weight_bytes(model) - weight_bytes(unrepaired)
            slowdown = self._runner.slowdown(model, unrepaired, few)
            stage.note = (
                f"{len(repair.keep_fp32)} of {len(everything)} layers stay in float32: "
                f"{added_bytes / 1e6:+.1f} MB, {slowdown:.2f} times as long"
            )
        return model, {
            "layers_kept_fp32": ", ".join(repair.keep_fp32),
            "repair_added_bytes": added_bytes,
            "repair_slowdown": round(slowdown, 3),
        }

    def _measure(
        self,
        precision: Precision,
        model: ModelProto,
        reference: Floats,
        *,
        against: str = "fp32",
        what: str | None = None,
        provider: ExecutionProvider = ExecutionProvider.CPU,
    ) -> Measured:
        """Write a variant, and measure the very file that was written."""
        path = self._folder / precision.path
        with self._progress.stage(f"verify {what or precision}") as stage:
            files = save_onnx(model, path, external_data_threshold_bytes=self._options.external_data_threshold_bytes)
            return self._judge.measure(
                precision, path, reference, stage, files=files, opset=opset_of(model), against=against, provider=provider
            )


def _finish(precision: Precision, model: ModelProto) -> ModelProto:
    """Fuse what ONNX Runtime's CPU provider runs; TensorRT takes standard operators only."""
    return fuse_for_cpu(model).model if precision is Precision.INT8 else model
