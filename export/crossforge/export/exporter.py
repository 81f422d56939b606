"""The export stage: a checkpoint in, a bundle with proven variants out."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from onnx import ModelProto
from tokenizers import Tokenizer

from crossforge.export.bundle import record_files, refuse_other_content, staged_bundle
from crossforge.export.calibration import calibration_batches, read_calibration
from crossforge.export.onnx import EXTERNAL_DATA_THRESHOLD_BYTES, export_onnx, opset_of, save_onnx
from crossforge.export.pairs import flatten, verification_pairs
from crossforge.export.parity import GATES, Gate, compare_logits, reference_logits
from crossforge.export.quantization import INT8_SETTINGS, quantize_int8
from crossforge.export.source import LoadedSource, SourceOptions, load_source
from crossforge.profiles import (
    MANIFEST_NAME,
    Activation,
    GateError,
    GoldenPair,
    InputError,
    Manifest,
    PairTemplate,
    ParityReport,
    Precision,
    Variant,
)
from crossforge.runtime.activation import Floats
from crossforge.runtime.bundle import TOKENIZER_NAME
from crossforge.runtime.machine import usable_cores
from crossforge.runtime.progress import Progress, Silent, Stage
from crossforge.runtime.scoring import compute_logits
from crossforge.runtime.sessions.ort import OnnxRuntimeSession
from crossforge.runtime.tokenization import PairTokenizer, derive_pair_template, load_tokenizer

SUPPORTED_PRECISIONS = (Precision.FP32, Precision.INT8)
_GOLDEN_PAIRS = 8
_FP32_TOLERANCE = 1e-3
_INT8_TOLERANCE_FACTOR = 2.0
_SMALLEST_INT8_TOLERANCE = 0.05
_EXACT_INT8 = ("avx512_vnni", "avx_vnni", "arm64")
"""Where u8 x s8 products accumulate in 32 bits; elsewhere they pass through saturating 16-bit sums."""
_TOOLS = ("crossforge", "torch", "transformers", "optimum", "optimum-onnx", "onnx", "onnxruntime", "tokenizers")
_ACTIVATION_CLASSES = {
    Activation.IDENTITY: "torch.nn.modules.linear.Identity",
    Activation.SIGMOID: "torch.nn.modules.activation.Sigmoid",
    Activation.SOFTMAX: "torch.nn.modules.activation.Softmax",
}


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What to make of a source."""

    precisions: tuple[Precision, ...] = SUPPORTED_PRECISIONS
    source: SourceOptions = field(default_factory=SourceOptions)
    gates: Mapping[Precision, Gate] = field(default_factory=lambda: GATES)
    calibration: Path | None = None
    """Pairs in the run format that int8 is tuned on; None takes the built-in ones."""
    enforce_gates: bool = True
    """False writes variants that fail too; their manifest entry says so, and ``auto`` never takes them."""
    external_data_threshold_bytes: int = EXTERNAL_DATA_THRESHOLD_BYTES

    def __post_init__(self) -> None:
        if not self.precisions:
            raise InputError("no precision was asked for", allowed=", ".join(SUPPORTED_PRECISIONS))
        if unknown := [p for p in self.precisions if p not in SUPPORTED_PRECISIONS]:
            raise InputError(f"{unknown[0]} cannot be exported yet", allowed=", ".join(SUPPORTED_PRECISIONS))


def export_bundle(
    source: str, target: str | Path, options: ExportOptions | None = None, *, progress: Progress | None = None
) -> Manifest:
    """Export a cross-encoder, quantize it, prove that its ranking survived, and write a bundle.

    The float32 graph is compared with PyTorch and every other variant with the float32 graph, on the verification pairs,
    through the runtime's own tokenizer, batches and session.

    Args:
        source: A local folder, a hub id, or ``demo``.
        target: The bundle's folder. A bundle that is there is replaced, when the new one is complete.
        options: What to make.
        progress: Told of each stage.

    Returns:
        The manifest that was written.

    Raises:
        SourceError: The source is not a cross-encoder that can be exported.
        InputError: ``target`` holds something else.
        GateError: A variant ranks differently from its reference; nothing is written.
        MachineError: A package is missing.
    """
    options = options or ExportOptions()
    progress = progress or Silent()
    refuse_other_content(Path(target))
    with progress.stage("load the checkpoint") as stage:
        loaded = load_source(source, options.source)
        parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
        stage.note = f"{type(loaded.model).__name__}, {parameters / 1e6:.1f} M parameters"
    with staged_bundle(target) as folder:
        manifest = _Export(loaded, options, folder, progress).run()
        (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


class _Export:
    """One export in progress: holds what its stages share."""

    def __init__(self, loaded: LoadedSource, options: ExportOptions, folder: Path, progress: Progress) -> None:
        self._loaded = loaded
        self._options = options
        self._folder = folder
        self._progress = progress
        self._records = verification_pairs()
        self._variants: dict[Precision, Variant] = {}

    def run(self) -> Manifest:
        tokenizer, template = self._write_tokenizer()
        self._write_config()
        with self._progress.stage("score with PyTorch") as stage:
            reference = reference_logits(self._loaded, self._records)
            stage.note = f"{len(reference)} pairs"
        with self._progress.stage("convert to ONNX") as stage:
            graph = export_onnx(self._loaded.model)
            stage.note = f"opset {opset_of(graph)}, {len(graph.graph.node)} nodes"
        input_names = tuple(value.name for value in graph.graph.input)
        with self._progress.stage("verify fp32") as stage:
            fp32 = self._add_variant(Precision.FP32, graph, reference, tokenizer, stage, against="pytorch")
        if Precision.INT8 in self._options.precisions:
            with self._progress.stage("quantize to int8") as stage:
                batches = calibration_batches(
                    read_calibration(self._options.calibration),
                    tokenizer,
                    pad_token_id=self._pad_token_id(),
                    input_names=input_names,
                )
                quantized = quantize_int8(graph, batches)
                stage.note = "; ".join(quantized.notes)
            with self._progress.stage("verify int8") as stage:
                self._add_variant(Precision.INT8, quantized.model, fp32, tokenizer, stage, against="fp32")
        if Precision.FP32 not in self._options.precisions:  # it was only the reference
            for name in self._variants.pop(Precision.FP32).files:
                (self._folder / name).unlink()
        return Manifest(
            source=self._loaded.source,
            architecture=type(self._loaded.model).__name__,
            model_type=str(self._loaded.model.config.model_type),
            input_names=input_names,
            pair_template=template,
            pad_token_id=self._pad_token_id(),
            truncation=self._loaded.truncation,
            scoring=self._loaded.scoring,
            variants=self._variants,
            golden=self._golden(reference),
            tools=_tool_versions(),
            files=record_files(self._folder),
        )

    def _add_variant(
        self,
        precision: Precision,
        graph: ModelProto,
        reference: Floats,
        tokenizer: PairTokenizer,
        stage: Stage,
        *,
        against: str,
    ) -> Floats:
        """Write a variant, measure it through the runtime, and record it if it passes its gate."""
        path = self._folder / "onnx" / precision.file_name
        files = save_onnx(graph, path, external_data_threshold_bytes=self._options.external_data_threshold_bytes)
        logits = self._run(path, tokenizer, stage)
        gate = self._options.gates[precision]
        parity = compare_logits(
            reference, logits, self._records, ranking_label=self._loaded.scoring.ranking_label, name=against, gate=gate
        )
        size_bytes = sum(file.stat().st_size for file in files)
        stage.note = f"{size_bytes / 1e6:.1f} MB; {describe_parity(parity)}"
        if not parity.passed and self._options.enforce_gates:
            raise GateError(
                f"the {precision} variant does not rank like {against}",
                got=describe_parity(parity),
                allowed=gate.describe(),
                fix="Leave it out with --precision, or keep it for study with --no-gate. Nothing was written.",
            )
        is_int8 = precision is Precision.INT8
        self._variants[precision] = Variant(
            path=path.relative_to(self._folder).as_posix(),
            files=tuple(file.relative_to(self._folder).as_posix() for file in files),
            opset=opset_of(graph),
            quantization=INT8_SETTINGS if is_int8 else {},
            instruction_sets=_EXACT_INT8 if is_int8 else (),
            golden_tolerance=max(_SMALLEST_INT8_TOLERANCE, _INT8_TOLERANCE_FACTOR * parity.max_abs_diff)
            if is_int8
            else _FP32_TOLERANCE,
            parity=parity,
        )
        return logits

    def _run(self, path: Path, tokenizer: PairTokenizer, stage: Stage) -> Floats:
        """Logits of a model file on the verification pairs, float32 [pairs, labels]."""
        labels = len(self._loaded.scoring.labels)
        pairs = tokenizer.encode_pairs(flatten(self._records))
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
                template=tokenizer.template,
                pad_token_id=self._pad_token_id(),
                labels=labels,
                workers=workers,
                executor=executor,
                on_batch=advance,
            )
        session.close()
        return logits

    def _write_tokenizer(self) -> tuple[PairTokenizer, PairTemplate]:
        """Save the tokenizer without truncation and padding, which would cut whatever opens the bundle."""
        tokenizer = self._loaded.tokenizer
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.save_pretrained(self._folder)
        path = self._folder / "tokenizer_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        for stale in ("max_length", "stride", "truncation_strategy", "pad_to_multiple_of", "pad_token_type_id"):
            config.pop(stale, None)
        config["model_max_length"] = self._loaded.truncation.max_length
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        ours: Tokenizer = load_tokenizer(self._folder / TOKENIZER_NAME)
        template = derive_pair_template(ours)
        return PairTokenizer(ours, template, self._loaded.truncation), template

    def _write_config(self) -> None:
        """Save the config with the activation in the place where sentence-transformers looks for it today."""
        config = self._loaded.model.config
        own = dict(getattr(config, "sentence_transformers", None) or {})
        own["activation_fn"] = _ACTIVATION_CLASSES[self._loaded.scoring.activation]
        config.sentence_transformers = own
        config.save_pretrained(self._folder)

    def _pad_token_id(self) -> int:
        pad = self._loaded.tokenizer.pad_token_id
        return int(pad if pad is not None else self._loaded.model.config.pad_token_id or 0)

    def _golden(self, reference: Floats) -> tuple[GoldenPair, ...]:
        pairs = flatten(self._records)
        step = max(1, len(pairs) // _GOLDEN_PAIRS)
        return tuple(
            GoldenPair(query=pairs[i][0], passage=pairs[i][1], logits=tuple(float(x) for x in reference[i]))
            for i in range(0, len(pairs), step)
        )


def describe_parity(parity: ParityReport) -> str:
    """The figures of a report in one line."""
    parts = [f"largest logit difference {parity.max_abs_diff:.2g}"]
    if parity.kendall_tau is not None:
        parts.append(f"Kendall tau {parity.kendall_tau:.4f}")
    if parity.top1_agreement is not None:
        parts.append(f"same first passage {parity.top1_agreement:.0%}")
    return ", ".join(parts)


def _tool_versions() -> dict[str, str]:
    versions = {}
    for name in _TOOLS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
