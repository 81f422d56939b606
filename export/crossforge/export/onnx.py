"""PyTorch to ONNX, through optimum, as one portable graph of standard operators."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
from onnx import ModelProto, NodeProto

from crossforge.export.options import EXTERNAL_DATA_THRESHOLD_BYTES
from crossforge.profiles import MissingPackageError, SourceError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OPSET = 18
"""Has LayerNormalization (17) and reductions with axes as an input (18); every engine that we build for reads it."""
_TASK = "text-classification"
_HEADLESS_TASK = "feature-extraction"


def export_onnx(model: PreTrainedModel) -> ModelProto:
    """Trace a cross-encoder.

    Args:
        model: A ``*ForSequenceClassification`` in float32.

    Returns:
        A graph of standard operators with dynamic batch and sequence axes, inputs int64 [batch, sequence] and the output
        ``logits`` float32 [batch, labels].

    Raises:
        MissingPackageError: optimum-onnx is not installed.
        SourceError: optimum does not know the architecture, or the result is not a reranker.
    """
    exported = _trace(model, _TASK)
    check_outputs(exported, ranks=2, what="a reranker", allowed="logits [batch, labels]")
    return exported


def export_transformer(model: PreTrainedModel) -> ModelProto:
    """Trace a transformer without a head, as :func:`export_onnx` does.

    Returns:
        The like, with the output ``last_hidden_state`` float32 [batch, sequence, hidden].
    """
    exported = _trace(model, _HEADLESS_TASK)
    check_outputs(exported, ranks=3, what="a transformer", allowed="last_hidden_state [batch, sequence, hidden]")
    known = {"input_ids", "attention_mask", "token_type_ids"}
    inputs = {value.name for value in exported.graph.input}
    if inputs - known:
        raise SourceError(
            f"a {type(model).__name__} takes inputs that the runtime does not make",
            got=", ".join(sorted(inputs - known)),
            allowed=", ".join(sorted(known)),
        )
    return exported


def _trace(model: PreTrainedModel, task: str) -> ModelProto:
    try:
        from optimum.exporters.onnx.convert import onnx_export_from_model
    except ImportError as error:
        raise MissingPackageError("optimum-onnx", extra="export", purpose="Exporting") from error
    with tempfile.TemporaryDirectory(prefix="crossforge-") as folder:
        try:
            with quiet():
                onnx_export_from_model(model, folder, task=task, opset=OPSET, do_validation=False)
        except Exception as error:
            kind = type(model).__name__
            raise SourceError(f"optimum cannot export a {kind} ({type(error).__name__}: {error})") from error
        exported: ModelProto = onnx.load(str(Path(folder) / "model.onnx"))
    drop_aliases(exported)
    return exported


def save_onnx(
    model: ModelProto, path: Path, *, external_data_threshold_bytes: int = EXTERNAL_DATA_THRESHOLD_BYTES
) -> list[Path]:
    """Write a model, with its weights beside it if they are too large for one protobuf.

    Returns:
        The files written: ``path``, and ``path`` + ``_data`` where the weights went there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = path.with_name(path.name + "_data")
    data.unlink(missing_ok=True)  # onnx appends to a data file that is there
    if weight_bytes(model) < external_data_threshold_bytes:
        onnx.save_model(model, str(path))
        return [path]
    copy = ModelProto()
    copy.CopyFrom(model)  # saving moves the weights out of the message that it is given
    onnx.save_model(copy, str(path), save_as_external_data=True, location=data.name, size_threshold=1024)
    return [path, data]


def weight_bytes(model: ModelProto) -> int:
    """Bytes of a model's constant tensors."""
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)


def opset_of(model: ModelProto) -> int:
    """The version of the standard operator set that a model uses."""
    return next((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def check_outputs(model: ModelProto, *, ranks: int, what: str, allowed: str) -> None:
    """Make sure that a graph answers with one tensor of so many axes.

    Raises:
        SourceError: It does not.
    """
    outputs = {output.name: len(output.type.tensor_type.shape.dim) for output in model.graph.output}
    if list(outputs.values()) != [ranks]:
        raise SourceError(f"the exported graph is not {what}", got=f"outputs {', '.join(outputs)}", allowed=allowed)


def drop_aliases(model: ModelProto) -> None:
    """Let every reader of a constant read it by its own name.

    torch stores equal tensors once and writes ``Identity`` nodes for the others, behind which no pass would find a weight.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    kept_outputs = {output.name for output in model.graph.output}
    aliases: dict[str, str] = {}
    nodes = []
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = aliases.get(name, name)
        if node.op_type == "Identity" and node.input[0] in constants and node.output[0] not in kept_outputs:
            aliases[node.output[0]] = node.input[0]
        else:
            copy = NodeProto()
            copy.CopyFrom(node)
            nodes.append(copy)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the tracer's remarks off the terminal: parity with PyTorch, measured next, is what proves the trace."""
    loggers = [logging.getLogger(name) for name in ("optimum", "optimum.exporters.onnx", "torch.onnx")]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)
