"""The original PyTorch model's logits, which every variant answers to in the end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from tokenizers import Encoding

from crossforge.export.causal import CausalSource
from crossforge.export.source import LoadedSource
from crossforge.runtime.activation import Floats

_BATCH = 16


def reference_logits(source: LoadedSource, pairs: Sequence[tuple[str, str]]) -> Floats:
    """Logits of the PyTorch model, through its own tokenizer: nothing of crossforge's runtime takes part.

    Returns:
        float32 [pairs, labels].
    """
    if source.causal is not None:
        return _causal_logits(source, source.causal, pairs)
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
    first: Encoding = backend.encode(query, add_special_tokens=False)
    first.truncate(truncation.query_max_length, direction=truncation.side)
    second: Encoding = backend.encode(passage, add_special_tokens=False)
    room = truncation.max_length - len(first) - backend.num_special_tokens_to_add(is_pair=True)
    second.truncate(room, direction=truncation.side)
    return backend.post_process(first, second)


def _causal_logits(source: LoadedSource, causal: CausalSource, pairs: Sequence[tuple[str, str]]) -> Floats:
    """Log-odds of yes by Qwen3-Reranker's model card: prefix, body and suffix apart, padding on the left, the whole head.

    Only the query's limit is crossforge's own, and is applied to its text.
    """
    tokenizer = source.tokenizer
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    prompt, truncation = causal.prompt, source.truncation
    prefix, suffix = (backend.encode(text, add_special_tokens=False).ids for text in (prompt.prefix, prompt.suffix))
    room = truncation.max_length - len(prefix) - len(suffix)
    rows = []
    for query, passage in pairs:
        encoding = backend.encode(query, add_special_tokens=False)
        if len(encoding) > truncation.query_max_length:
            query = query[: encoding.offsets[truncation.query_max_length - 1][1]]
        body = prompt.before_query() + query + prompt.before_passage() + passage
        rows.append([*prefix, *backend.encode(body, add_special_tokens=False).ids[:room], *suffix])
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    logits = np.empty((len(rows), 1), dtype=np.float32)
    pad = tokenizer.pad_token_id or 0
    with torch.inference_mode():
        for start in range(0, len(order), _BATCH):
            chosen = order[start : start + _BATCH]
            longest = max(len(rows[i]) for i in chosen)
            padding = [longest - len(rows[i]) for i in chosen]
            answer = source.model(
                input_ids=torch.tensor([[pad] * left + rows[i] for i, left in zip(chosen, padding, strict=True)]),
                attention_mask=torch.tensor([[0] * left + [1] * (longest - left) for left in padding]),
                logits_to_keep=1,
            ).logits[:, -1]
            score = answer[:, causal.true_token_id]
            if causal.false_token_id is not None:
                score = score - answer[:, causal.false_token_id]
            logits[chosen, 0] = score.float().numpy()
    return logits
