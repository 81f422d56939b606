"""The original PyTorch model's logits, which every variant answers to in the end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from tokenizers import Encoding

from crossforge.export.source import LoadedSource
from crossforge.runtime.activation import Floats

_BATCH = 16


def reference_logits(source: LoadedSource, pairs: Sequence[tuple[str, str]]) -> Floats:
    """Logits of the PyTorch model, through its own tokenizer: nothing of crossforge's runtime takes part.

    Returns:
        float32 [pairs, labels].
    """
    tokenizer = source.tokenizer
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
    logits = np.empty((len(pairs), len(source.scoring.labels)), dtype=np.float32)
    with torch.inference_mode():
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            encodings = [_encode(source, *pairs[i]) for i in rows]
            longest = max(map(len, encodings))
            for encoding in encodings:
                encoding.pad(longest, pad_id=tokenizer.pad_token_id or 0)
            inputs = {
                "input_ids": [encoding.ids for encoding in encodings],
                "attention_mask": [encoding.attention_mask for encoding in encodings],
                "token_type_ids": [encoding.type_ids for encoding in encodings],
            }
            read = {name: torch.tensor(ids) for name, ids in inputs.items() if name in tokenizer.model_input_names}
            logits[rows] = source.model(**read).logits.float().numpy()
    return logits


def _encode(source: LoadedSource, query: str, passage: str) -> Encoding:
    """A pair as the tokenizer's post-processor joins it, after each text was cut, by tokens, to what the contract keeps."""
    backend, truncation = source.tokenizer.backend_tokenizer, source.truncation
    if truncation.query_max_length is None:
        backend.enable_truncation(truncation.max_length, strategy="longest_first", direction=truncation.side)
        pair: Encoding = backend.encode(query, passage)
        backend.no_truncation()
        return pair
    first: Encoding = backend.encode(query, add_special_tokens=False)
    first.truncate(truncation.query_max_length, direction=truncation.side)
    second: Encoding = backend.encode(passage, add_special_tokens=False)
    room = truncation.max_length - len(first) - backend.num_special_tokens_to_add(is_pair=True)
    second.truncate(room, direction=truncation.side)
    return backend.post_process(first, second)
