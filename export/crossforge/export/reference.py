"""The original PyTorch model's logits, which every variant answers to in the end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from tokenizers import Encoding

from crossforge.export.bi_encoder import BiEncoder
from crossforge.export.causal import CausalSource
from crossforge.export.source import LoadedSource
from crossforge.profiles import Pooling, Similarity
from crossforge.runtime.activation import Floats

_BATCH = 16


def reference_logits(source: LoadedSource, pairs: Sequence[tuple[str, str]]) -> Floats:
    """Logits of the PyTorch model, through its own tokenizer: nothing of crossforge's runtime takes part.

    Returns:
        float32 [pairs, labels]; of a bi-encoder the similarity of the pair's embeddings, float32 [pairs, 1].
    """
    if source.causal is not None:
        return _causal_logits(source, source.causal, pairs)
    if source.bi_encoder is not None:
        return _similarities(source, source.bi_encoder, pairs)
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
            logits[rows] = source.model(**_inputs(source, encodings)).logits.float().numpy()
    return logits


def _inputs(source: LoadedSource, encodings: Sequence[Encoding]) -> dict[str, torch.Tensor]:
    inputs = {
        "input_ids": [encoding.ids for encoding in encodings],
        "attention_mask": [encoding.attention_mask for encoding in encodings],
        "token_type_ids": [encoding.type_ids for encoding in encodings],
    }
    return {name: torch.tensor(ids) for name, ids in inputs.items() if name in source.tokenizer.model_input_names}


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


def reference_embeddings(source: LoadedSource, texts: Sequence[str]) -> Floats:
    """Embeddings of the PyTorch model and what comes after it, float32 [texts, dimension]; texts with their prompts."""
    bi_encoder = source.bi_encoder
    if bi_encoder is None:
        raise ValueError(f"{source.source.id} is no bi-encoder")
    backend, truncation = source.tokenizer.backend_tokenizer, source.truncation
    backend.no_truncation()
    backend.no_padding()
    room = truncation.max_length - backend.num_special_tokens_to_add(is_pair=False)
    vectors = np.empty((len(texts), bi_encoder.embedding.dimension), dtype=np.float32)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    with torch.inference_mode():
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            encodings = []
            for i in rows:
                encoding = backend.encode(texts[i], add_special_tokens=False)
                encoding.truncate(room, direction=truncation.side)
                encodings.append(backend.post_process(encoding))
            longest = max(map(len, encodings))
            for encoding in encodings:
                encoding.pad(longest, pad_id=source.tokenizer.pad_token_id or 0)
            inputs = _inputs(source, encodings)
            hidden = source.model(**inputs).last_hidden_state.float()
            vectors[rows] = _embed(hidden, inputs["attention_mask"], bi_encoder).numpy()
    return vectors


def _similarities(source: LoadedSource, bi_encoder: BiEncoder, pairs: Sequence[tuple[str, str]]) -> Floats:
    embedding = bi_encoder.embedding
    texts = [(embedding.query_prompt + query, embedding.passage_prompt + passage) for query, passage in pairs]
    distinct = {text: i for i, text in enumerate(dict.fromkeys(text for pair in texts for text in pair))}
    vectors = torch.from_numpy(reference_embeddings(source, list(distinct)))
    a, b = (vectors[[distinct[pair[side]] for pair in texts]] for side in (0, 1))
    match embedding.similarity:
        case Similarity.COSINE:
            score = torch.nn.functional.cosine_similarity(a, b)
        case Similarity.DOT:
            score = (a * b).sum(dim=1)
        case Similarity.MANHATTAN:
            score = -(a - b).abs().sum(dim=1)
        case Similarity.EUCLIDEAN:
            score = -torch.linalg.vector_norm(a - b, dim=1)
    result: Floats = score[:, None].numpy()
    return result


def _embed(hidden: torch.Tensor, mask: torch.Tensor, bi_encoder: BiEncoder) -> torch.Tensor:
    """Pool [batch, sequence, hidden] and do what follows."""
    vector = torch.cat([_pool(hidden, mask, mode) for mode in bi_encoder.embedding.pooling], dim=1)
    for layer in bi_encoder.dense:
        bias = None if layer.bias is None else torch.from_numpy(layer.bias)
        vector = torch.nn.functional.linear(vector, torch.from_numpy(layer.weight), bias)
        vector = getattr(torch.nn, layer.activation)()(vector)
    return torch.nn.functional.normalize(vector, dim=1) if bi_encoder.embedding.normalize else vector


def _pool(hidden: torch.Tensor, mask: torch.Tensor, mode: Pooling) -> torch.Tensor:
    """Text by text, on its own tokens alone: slow, and plain."""
    rows = [vectors[:tokens] for vectors, tokens in zip(hidden, mask.sum(dim=1).tolist(), strict=True)]
    match mode:
        case Pooling.CLS:
            return torch.stack([row[0] for row in rows])
        case Pooling.LAST_TOKEN:
            return torch.stack([row[-1] for row in rows])
        case Pooling.MAX:
            return torch.stack([row.amax(dim=0) for row in rows])
        case Pooling.MEAN:
            return torch.stack([row.mean(dim=0) for row in rows])
        case Pooling.MEAN_SQRT_LEN:
            return torch.stack([row.sum(dim=0) / len(row) ** 0.5 for row in rows])
        case Pooling.WEIGHTED_MEAN:
            places = [torch.arange(1, len(row) + 1, dtype=row.dtype)[:, None] for row in rows]
            return torch.stack([(row * place).sum(dim=0) / place.sum() for row, place in zip(rows, places, strict=True)])


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
        if truncation.query_max_length is not None and len(encoding) > truncation.query_max_length:
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
