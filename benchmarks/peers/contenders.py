"""Who takes part: peers as their own helpers set them up, and every variant of a bundle on every provider of this CPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from crossforge.profiles import ExecutionProvider
from crossforge.runtime.bundle import Bundle
from crossforge.runtime.machine import Machine
from crossforge.runtime.profiling.contenders import list_candidates

REFERENCE = "sentence-transformers fp32"
OURS = "crossforge"
_ON_GPUS = (ExecutionProvider.TENSORRT, ExecutionProvider.CUDA)
# Names that fastembed and FlashRank know: they choose a file's name and the class that reads it. The weights are the demo's.
FASTEMBED_NAME = "Xenova/ms-marco-MiniLM-L-6-v2"
FLASHRANK_NAME, FLASHRANK_FILE = "ms-marco-MiniLM-L-12-v2", "flashrank-MiniLM-L-12-v2_Q.onnx"


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One row of the table."""

    name: str
    kind: str
    """How the worker loads it; for peers also their environment's name."""
    options: dict[str, str] = field(default_factory=dict)
    is_int8: bool = False

    @property
    def is_ours(self) -> bool:
        return self.kind == OURS


def peers(models: Path, checkpoint: Path) -> list[Contender]:
    """The others; ``models`` is where ``peers/models.py`` put theirs."""
    helper = "sentence-transformers"
    exported = str(models / helper)
    return [
        Contender(name=REFERENCE, kind=helper, options={"model": str(checkpoint), "dtype": "float32"}),
        Contender(name=f"{helper} bf16", kind=helper, options={"model": str(checkpoint), "dtype": "bfloat16"}),
        Contender(
            name=f"{helper} onnx int8",
            kind=helper,
            options={"model": exported, "backend": "onnx", "file_name": "onnx/model_qint8.onnx"},
            is_int8=True,
        ),
        Contender(
            name=f"{helper} openvino int8",
            kind=helper,
            options={"model": exported, "backend": "openvino", "file_name": "openvino/openvino_model_qint8_quantized.xml"},
            is_int8=True,
        ),
        Contender(
            name="fastembed fp32", kind="fastembed", options={"model": str(models / "fastembed"), "name": FASTEMBED_NAME}
        ),
        Contender(
            name="FlashRank int8",
            kind="flashrank",
            options={"model": str(models / "flashrank"), "name": FLASHRANK_NAME},
            is_int8=True,
        ),
    ]


def ours(bundle: Bundle, machine: Machine) -> list[Contender]:
    """What a bundle holds for this processor."""
    providers = tuple(provider for provider in ExecutionProvider if provider not in _ON_GPUS)
    candidates, _ = list_candidates(bundle.manifest, machine, providers=providers)
    return [
        Contender(
            name=f"{OURS} {candidate.precision}"
            + ("" if candidate.provider is ExecutionProvider.CPU else f" ({candidate.provider})"),
            kind=OURS,
            options={"model": str(bundle.path), "provider": candidate.provider, "precision": candidate.precision},
            is_int8="int8" in candidate.precision,
        )
        for candidate in candidates
    ]
