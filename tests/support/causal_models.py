"""Tiny causal rerankers with random weights: decoders behind a byte-level BPE that splits text as Qwen's does."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from support.tiny_models import TEXTS

MAX_LENGTH = 224
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PLAIN = ["<think>", "</think>"]
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2 and Qwen3 split a text before the merges; from their tokenizer.json."""
CARD_PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
CARD_SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
CARD_TASK = "Given a web search query, retrieve relevant passages that answer the query"
_ROLE = '{{ messages | selectattr("role", "eq", "%s") | map(attribute="content") | first }}'
CHAT_TEMPLATE = (
    "{{- " + json.dumps(CARD_PREFIX) + " -}}"
    '<Instruct>: {{ (messages | selectattr("role", "eq", "system") | map(attribute="content") | list'
    f' + ["{CARD_TASK}"])[0] }}}}\n<Query>: {_ROLE % "query"}\n<Document>: {_ROLE % "document"}'
    "{{- " + json.dumps(CARD_SUFFIX) + " -}}"
)
"""Qwen3-Reranker's text as a chat template, in the form that sentence-transformers fills with a pair."""


def save_causal_model(
    folder: Path, model_type: str = "qwen3", *, sentence_transformers: bool = False, **config: Any
) -> Path:
    """Save a tiny decoder and its tokenizer.

    Args:
        folder: Where to; is made.
        model_type: Its family.
        sentence_transformers: Also write down how it scores, as sentence-transformers does.
        **config: Further fields of the model's config.
    """
    tokenizer = make_tokenizer()
    fields: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": MAX_LENGTH,
        "initializer_range": 0.2,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
        **({} if model_type == "qwen2" else {"head_dim": 16}),
        **config,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **fields))
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):  # ones as they are made: a norm that is left out would not be noticed
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if sentence_transformers:
        save_as_cross_encoder(folder)
    return folder


def save_as_cross_encoder(folder: Path) -> None:
    """Let sentence-transformers itself write down how it scores with a decoder."""
    from sentence_transformers import CrossEncoder

    original = CrossEncoder(str(folder), device="cpu", processor_kwargs={"chat_template": CHAT_TEMPLATE})
    original.save_pretrained(str(folder), create_model_card=False)


def make_tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained()),
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[2],
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )


@cache
def _trained() -> str:
    """Merges that reach over the borders of a prompt's texts are in it: the corpus holds filled prompts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    filled = [f"<Instruct>: {CARD_TASK}\n<Query>: {text}\n<Document>: {text}\n\n" for text in TEXTS]
    borders = ["yes no yes no yes no", "(\n ...\n\n !!\n :\n", CARD_PREFIX, CARD_SUFFIX, "質問：答え。" * 3]
    trainer = trainers.BpeTrainer(
        vocab_size=700, show_progress=False, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())
    )
    tokenizer.train_from_iterator(filled + borders * 4, trainer)
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in PLAIN])
    assert {"yes", "no"} <= tokenizer.get_vocab().keys()
    return str(tokenizer.to_str())


def card_log_probabilities(model: PreTrainedModel, pairs: list[tuple[str, str]], *, task: str = CARD_TASK) -> np.ndarray:
    """log P(no) and log P(yes) by the procedure of Qwen3-Reranker's model card: float32 [pairs, 2].

    All pairs are in one batch that is padded on the left, and the whole head is computed.
    """
    tokenizer = make_tokenizer()
    tokenizer.padding_side = "left"
    prefix = tokenizer.encode(CARD_PREFIX, add_special_tokens=False)
    suffix = tokenizer.encode(CARD_SUFFIX, add_special_tokens=False)
    bodies = [f"<Instruct>: {task}\n<Query>: {query}\n<Document>: {passage}" for query, passage in pairs]
    room = MAX_LENGTH - len(prefix) - len(suffix)
    encoded = tokenizer(bodies, padding=False, truncation="longest_first", return_attention_mask=False, max_length=room)
    encoded["input_ids"] = [prefix + ids + suffix for ids in encoded["input_ids"]]
    padded = tokenizer.pad(encoded, padding=True, return_tensors="pt")
    assert (padded["attention_mask"][:, 0] == 0).any()
    with torch.inference_mode():
        last = model(**padded).logits[:, -1, :]
    both = torch.stack([last[:, tokenizer.vocab["no"]], last[:, tokenizer.vocab["yes"]]], dim=1)
    return torch.nn.functional.log_softmax(both, dim=1).numpy()
