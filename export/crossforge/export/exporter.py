"""The export stage: a checkpoint in, a bundle with proven variants out."""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import dataclass, field
from pathlib import Path

from onnx import ModelProto
from tokenizers import Tokenizer

from crossforge.export.bundle import record_files, refuse_other_content, staged_bundle
from crossforge.export.decoder import export_decoder
from crossforge.export.evidence import Evidence, read_evidence
from crossforge.export.onnx import export_onnx, export_transformer, opset_of
from crossforge.export.options import SourceOptions, VariantOptions
from crossforge.export.pairs import flatten, verification_pairs
from crossforge.export.passes import keep_first_row
from crossforge.export.pooling import append_pooling
from crossforge.export.reference import reference_logits
from crossforge.export.reports import write_reports
from crossforge.export.source import LoadedSource, load_source
from crossforge.export.variants import VariantMaker
from crossforge.profiles import (
    MANIFEST_NAME,
    Activation,
    GoldenPair,
    InputError,
    Manifest,
    PairTemplate,
    Precision,
)
from crossforge.runtime.bundle import TOKENIZER_NAME
from crossforge.runtime.progress import Progress, Silent
from crossforge.runtime.prompts import PromptTokenizer
from crossforge.runtime.templates import derive_pair_template, derive_prompt_template, derive_text_template
from crossforge.runtime.tokenization import PairTokenizer, load_tokenizer

DEFAULT_PRECISIONS = (Precision.FP32, Precision.INT8)
_GOLDEN_PAIRS = 8
_TOOLS = ("crossforge", "torch", "transformers", "optimum", "optimum-onnx", "onnx", "onnxruntime", "tokenizers")
_ACTIVATION_CLASSES = {
    Activation.IDENTITY: "torch.nn.modules.linear.Identity",
    Activation.SIGMOID: "torch.nn.modules.activation.Sigmoid",
    Activation.SOFTMAX: "torch.nn.modules.activation.Softmax",
}


@dataclass(frozen=True, kw_only=True)
class ExportOptions(VariantOptions):
    """What to make of a source."""

    precisions: tuple[Precision, ...] = DEFAULT_PRECISIONS
    source: SourceOptions = field(default_factory=SourceOptions)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.precisions:
            raise InputError("no precision was asked for", allowed=", ".join(Precision))


def export_bundle(
    source: str, target: str | Path, options: ExportOptions | None = None, *, progress: Progress | None = None
) -> Manifest:
    """Export a cross-encoder or a bi-encoder, quantize it, prove that its ranking survived, and write a bundle.

    The float32 graph is compared with PyTorch and every other variant with the float32 graph, on the verification pairs,
    through the runtime's own tokenizer, batches and session.

    Args:
        source: A local folder, a hub id, ``demo`` or ``demo-embedder``.
        target: The bundle's folder. A bundle that is there is replaced, when the new one is complete.
        options: What to make.
        progress: Told of each stage.

    Returns:
        The manifest that was written.

    Raises:
        SourceError: The source is no model that can be exported.
        InputError: ``target`` holds something else; a variant would be float32 by another name; the verification pairs or
            judgements cannot be used, or could show no loss.
        GateError: A variant ranks differently from its reference; nothing is written.
        MachineError: A package is missing.
    """
    options = options or ExportOptions()
    progress = progress or Silent()
    refuse_other_content(Path(target))
    evidence = read_evidence(options)
    with progress.stage("load the checkpoint") as stage:
        loaded = load_source(source, options.source)
        parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
        stage.note = f"{type(loaded.model).__name__}, {parameters / 1e6:.1f} M parameters"
    with staged_bundle(target) as folder:
        manifest = _Export(loaded, options, evidence, folder, progress).run()
        (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


class _Export:
    """One export in progress: holds what its stages share."""

    def __init__(
        self, loaded: LoadedSource, options: ExportOptions, evidence: Evidence, folder: Path, progress: Progress
    ) -> None:
        self._loaded = loaded
        self._options = options
        self._evidence = evidence
        self._folder = folder
        self._progress = progress

    def run(self) -> Manifest:
        bi_encoder = self._loaded.bi_encoder
        embedding = None if bi_encoder is None else bi_encoder.embedding
        tokenizer, template = self._write_tokenizer()
        self._write_config()
        maker = VariantMaker(
            self._folder,
            tokenizer,
            self._loaded.scoring,
            pad_token_id=self._pad_token_id(),
            options=self._options,
            evidence=self._evidence,
            progress=self._progress,
            embedding=embedding,
        )
        with self._progress.stage("score with PyTorch") as stage:
            reference = reference_logits(self._loaded, flatten(maker.records))
            golden = _golden_pairs(self._loaded)
            stage.note = f"{len(reference)} pairs"
        with self._progress.stage("convert to ONNX") as stage:
            graph = self._trace()
            lean = keep_first_row(graph)
            stage.note = f"opset {opset_of(graph)}, {len(lean.model.graph.node)} nodes; {'; '.join(lean.notes)}"
        fp32 = maker.add_fp32(lean.model, reference)
        for precision in (precision for precision in Precision if precision in self._options.precisions):
            if precision is not Precision.FP32:
                maker.add(precision, lean.model, fp32)
        if Precision.FP32 not in self._options.precisions:  # it was only the reference
            used = {
                name for kept in maker.variants.values() if kept is not maker.variants[Precision.FP32] for name in kept.files
            }
            for name in set(maker.variants.pop(Precision.FP32).files) - used:
                (self._folder / name).unlink()
        write_reports(self._folder, maker.reports)
        return Manifest(
            source=self._loaded.source,
            architecture=type(self._loaded.model).__name__,
            model_type=str(self._loaded.model.config.model_type),
            input_names=tuple(value.name for value in graph.graph.input),
            pair_template=template,
            prompt=self._loaded.causal.prompt if self._loaded.causal else None,
            pad_token_id=self._pad_token_id(),
            truncation=self._loaded.truncation,
            scoring=self._loaded.scoring,
            embedding=embedding,
            variants=maker.variants,
            golden=golden,
            tools=_tool_versions(),
            files=record_files(self._folder),
        )

    def _trace(self) -> ModelProto:
        bi_encoder, causal = self._loaded.bi_encoder, self._loaded.causal
        if causal is not None:
            return export_decoder(self._loaded.model, causal)
        if bi_encoder is None:
            return export_onnx(self._loaded.model)
        return append_pooling(export_transformer(self._loaded.model), bi_encoder.embedding, bi_encoder.dense)

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
        if self._loaded.causal is not None:
            prompt = self._loaded.causal.prompt
            template = derive_prompt_template(ours, prompt)
            return PromptTokenizer(ours, prompt, template, self._loaded.truncation), template
        template = (derive_pair_template if self._loaded.bi_encoder is None else derive_text_template)(ours)
        return PairTokenizer(ours, template, self._loaded.truncation), template

    def _write_config(self) -> None:
        """Save the config with the activation in the place where sentence-transformers looks for it today."""
        config = self._loaded.model.config
        if self._loaded.bi_encoder is not None:
            config.save_pretrained(self._folder)
            return
        own = dict(getattr(config, "sentence_transformers", None) or {})
        own["activation_fn"] = _ACTIVATION_CLASSES[self._loaded.scoring.activation]
        config.sentence_transformers = own
        config.save_pretrained(self._folder)

    def _pad_token_id(self) -> int:
        pad = self._loaded.tokenizer.pad_token_id
        return int(pad if pad is not None else self._loaded.model.config.pad_token_id or 0)


def _golden_pairs(source: LoadedSource) -> tuple[GoldenPair, ...]:
    """Some of the built-in pairs: whatever text a user verifies with stays out of the bundle."""
    pairs = flatten(verification_pairs())
    chosen = pairs[:: len(pairs) // _GOLDEN_PAIRS]
    return tuple(
        GoldenPair(query=query, passage=passage, logits=tuple(float(x) for x in logits))
        for (query, passage), logits in zip(chosen, reference_logits(source, chosen), strict=True)
    )


def _tool_versions() -> dict[str, str]:
    versions = {}
    for name in _TOOLS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
