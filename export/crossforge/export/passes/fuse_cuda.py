"""Fusion for ONNX Runtime's CUDA provider, done once at export and without a GPU.

ONNX Runtime's own library of patterns finds attention, residual sums with the LayerNorm after them, and GELU with its bias,
and writes each as one operator. Which of them pay on a GPU, and by how much, has not been measured: no GPU was at hand. What
is tested, on the CPU provider, is that the logits stay the same.

Attention is fused with the number of each row's tokens instead of its mask: the CUDA provider's fused attention kernels take
numbers, and leave masks to its unfused one (onnxruntime, contrib_ops/cuda/bert/multihead_attention.cc).

For float16, fuse first and apply :func:`~crossforge.export.passes.fp16.convert_fp16` to the result: it puts a fused
attention in float16, the Softmax inside included, and SkipLayerNormalization in float32. The other way round attention
stays as it is, because no pattern matches across the casts around a Softmax that was kept in float32. The scores inside a
fused attention cannot be measured, so :func:`~crossforge.export.passes.fp16_overflow.find_overflows` belongs before fusion;
a model where it finds any is to be converted first.

Requires: a float graph of standard operators, opset 17 or later; batches padded on the right, or ``right_padded=False``.
Ensures: same inputs and outputs, same logits up to float rounding. What no pattern matches stays as it is, such as the
    attention of a layer that :func:`~crossforge.export.passes.cls_only.keep_first_row` cut to one row. A second run changes
    nothing. The result holds ``com.microsoft`` operators, so it is for ONNX Runtime alone: never give it to TensorRT or
    OpenVINO, nor to ONNX Runtime's TensorRT provider.
"""

from __future__ import annotations

from collections import Counter

from onnx import ModelProto, helper

from crossforge.export.passes.graph import MICROSOFT
from crossforge.export.passes.requirements import why_not_plain
from crossforge.export.passes.result import PassResult

_OLDEST_OPSET = 17
"""The patterns write LayerNormalization whatever the opset is; it is standard from 17 on."""
_DEFAULT_EPSILON = 1e-5


def fuse_for_cuda(model: ModelProto, *, right_padded: bool = True) -> PassResult:
    """Fuse a reranker for ONNX Runtime's CUDA provider; never for TensorRT. What pays on a GPU has not been measured.

    Args:
        model: A float32 reranker; not changed. A float16 one keeps its attention as it is (see above).
        right_padded: Whether every row's padding comes after its tokens, as in all batches of crossforge's runtime. False
            takes any attention mask, for which the CUDA provider has only its unfused kernel.

    Returns:
        The fused model. Where there is nothing to do it is a plain copy, ``changed`` is False and the note says why.
    """
    result = ModelProto()
    result.CopyFrom(model)
    if (obstacle := why_not_plain(model, oldest_opset=_OLDEST_OPSET)) is not None:
        return PassResult(model=result, changed=False, notes=(f"not applicable: {obstacle}",))
    fused = _optimize(result, right_padded=right_padded)
    counts = Counter(node.op_type for node in fused.graph.node if node.domain == MICROSOFT)
    if not counts:
        result.CopyFrom(model)
        return PassResult(model=result, changed=False, notes=("not applicable: no pattern matches",))
    fused.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    notes = ["fused: " + ", ".join(f"{counts[op_type]} {op_type}" for op_type in sorted(counts))]
    if left := sum(node.op_type == "Softmax" for node in fused.graph.node):
        notes.append(f"{left} attention layers left as they were: no pattern matches them")
    return PassResult(model=fused, changed=True, notes=tuple(notes))


def _optimize(model: ModelProto, *, right_padded: bool) -> ModelProto:
    """Apply the patterns to a model, which is spent."""
    # Here, because the package puts its own folder on sys.path.
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.optimizer import optimize_model

    for node in model.graph.node:
        # The patterns take 1e-12 for an epsilon that is left out.
        if node.op_type == "LayerNormalization" and all(entry.name != "epsilon" for entry in node.attribute):
            node.attribute.append(helper.make_attribute("epsilon", _DEFAULT_EPSILON))
    options = FusionOptions("bert")
    options.use_raw_attention_mask(not right_padded)
    options.enable_embed_layer_norm = False  # one operator of the whole model, and it wants ids as int32
    # Level 0: the patterns alone. ONNX Runtime's own optimizers run when the file is loaded, on the provider that it is for.
    fused: ModelProto = optimize_model(model, model_type="bert", opt_level=0, optimization_options=options).model
    return fused
