"""A causal reranker to ONNX: the decoder, the last token of each row, and one row for its head.

A language model's head has a row for each token of the vocabulary. The score needs two: the logit of yes less the logit of
no is one product with the difference of their rows. That is exact, and in half precision better than the difference of two
large logits.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import torch
from onnx import ModelProto
from torch import Tensor, nn

from crossforge.export.causal import CausalSource
from crossforge.export.onnx import OPSET, check_outputs, drop_aliases, quiet
from crossforge.profiles import SourceError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_INPUTS = ("input_ids", "attention_mask")


class LastTokenReranker(nn.Module):
    """Scores with a language model at the last real token of each row.

    The mask and the positions are computed from ``attention_mask``, so that padding on the right and on the left score the
    same: a real token sees the real tokens up to itself, and counts its place among them.
    """

    def __init__(self, model: PreTrainedModel, causal: CausalSource) -> None:
        super().__init__()
        self.decoder = model.get_decoder()
        self.head = score_head(model, causal)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """int64 [batch, sequence] twice -> logits float32 [batch, 1]."""
        places = torch.arange(input_ids.shape[1])
        seen = (places[None, :] <= places[:, None])[None, None] & (attention_mask[:, None, None, :] > 0)
        hidden = self.decoder(
            input_ids=input_ids,
            attention_mask=torch.where(seen, 0.0, torch.finfo(torch.float32).min),
            position_ids=(attention_mask.cumsum(1) - 1).clamp(min=0),
            use_cache=False,
        ).last_hidden_state
        last = (places * attention_mask).argmax(1)
        row = torch.gather(hidden, 1, last[:, None, None].expand(-1, 1, hidden.shape[-1]))[:, 0]
        logits: Tensor = self.head(row)
        return logits


def score_head(model: PreTrainedModel, causal: CausalSource) -> nn.Linear:
    """A linear layer [hidden -> 1] that gives the logit of yes less that of no."""
    full = model.get_output_embeddings()
    head = nn.Linear(full.weight.shape[1], 1, bias=full.bias is not None)
    with torch.no_grad():
        for ours, theirs in ((head.weight, full.weight), (head.bias, full.bias)):
            if theirs is None:
                continue
            row = theirs[causal.true_token_id]
            ours[0] = row if causal.false_token_id is None else row - theirs[causal.false_token_id]
    return head


def export_decoder(model: PreTrainedModel, causal: CausalSource) -> ModelProto:
    """Trace a causal reranker.

    Optimum's exporter gives a decoder's graph for generation, with a cache and a whole head; so this traces by itself.

    Args:
        model: A ``*ForCausalLM`` in float32.
        causal: Which of its logits score.

    Returns:
        A graph of standard operators with dynamic batch and sequence axes, inputs ``input_ids`` and ``attention_mask`` int64
        [batch, sequence], and the output ``logits`` float32 [batch, 1].

    Raises:
        SourceError: It cannot be traced.
    """
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    example = torch.ones((2, 8), dtype=torch.int64)
    batch, sequence = "batch_size", "sequence_length"
    axes = {name: {0: batch, 1: sequence} for name in _INPUTS}
    with tempfile.TemporaryDirectory(prefix="crossforge-") as folder:
        path = Path(folder) / "model.onnx"
        try:
            with quiet(), torch.inference_mode():
                torch.onnx.export(
                    LastTokenReranker(model, causal).eval(),
                    (example, example),
                    str(path),
                    input_names=list(_INPUTS),
                    output_names=["logits"],
                    dynamic_axes={**axes, "logits": {0: batch}},
                    opset_version=OPSET,
                    dynamo=False,
                )
        except Exception as error:
            kind = type(model).__name__
            raise SourceError(f"torch cannot export a {kind} ({type(error).__name__}: {error})") from error
        finally:
            model.set_attn_implementation(before)
        exported: ModelProto = onnx.load(str(path))
    check_outputs(exported, ranks=2, what="a reranker", allowed="logits [batch, labels]")
    drop_aliases(exported)
    return exported
