"""Tiny cross-encoders with random weights and a real tokenizer, saved as checkpoints of seven architectures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertTokenizerFast,
    DebertaV2TokenizerFast,
    DistilBertTokenizerFast,
    ElectraTokenizerFast,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaTokenizerFast,
    XLMRobertaTokenizerFast,
)

from crossforge.export.exporter import ExportOptions
from crossforge.export.gates import OPEN_GATE
from crossforge.profiles import Precision
from support.pieces import fill_unigram, fill_word_piece

MAX_LENGTH = 96
"""Tokens of a pair that every tiny model reads."""
VOCABULARY = 1100
"""Rows of the word embeddings: above 1,000, so that int8 quantizes them. The tokenizers use fewer."""
_PIECES = 400
_BERT_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_ROBERTA_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
_OUTPUT_WEIGHTS = ("classifier.weight", "classifier.out_proj.weight")
"""The layer that the logits come from. Its weights have a deviation of 1, so that logits spread over several units."""

TEXTS = """
Berlin has a population of 3,520,031 registered inhabitants in an area of 891.82 square kilometers.
New York City is famous for the Metropolitan Museum of Art.
How many people live in the capital of Germany? The river Spree flows through the middle of the city.
A cross-encoder reads the query and the passage together. A bi-encoder embeds every text by itself, once and for all.
The kettle boils water in less than three minutes. Solar panels turn sunlight into electricity without moving parts.
What is the boiling point of water at sea level? Water boils at 100 degrees Celsius, or 212 degrees Fahrenheit.
The train to Hamburg leaves from platform seven at noon. Which vitamins are found in fresh oranges?
Oranges and lemons are rich in vitamin C. The court dismissed the claim for want of jurisdiction.
A contract needs an offer, an acceptance and consideration. How do I reset the password of my account?
Open the settings, choose security and press the reset button. The patient was given ten milligrams of morphine twice a day.
Side effects include nausea, dizziness and a dry mouth. Who wrote the symphony that is called the Unfinished?
Franz Schubert began his eighth symphony in 1822 and left it unfinished.
A black hole bends light so strongly that none escapes.
The price of copper rose by four percent in January. Shares of the company fell after the annual report.
Why does bread rise when it is baked? Yeast turns sugar into carbon dioxide, and the dough grows.
The function returns a list of integers in ascending order. An index out of range raises an exception.
Sort the array before you search it by bisection. The garden was full of roses, lilies and old apple trees.
Bees visit the flowers from early spring to late autumn. Volcanoes form where plates of the crust meet or part.
The last eruption of the mountain was in 1944. Whales are mammals that live in the ocean and breathe air.
How long does a blue whale live? The lighthouse keeper wrote a letter every evening.
Ein Fahrrad braucht keinen Treibstoff und wenig Platz. Wie viele Einwohner hat die Stadt an der Spree?
La tour Eiffel mesure trois cent trente mètres de haut. Quelle est la hauteur de la tour Eiffel ?
El río más largo de la península es el Tajo. ¿Cuál es el río más largo de España?
The museum is closed on Mondays and on public holidays. Tickets cost twelve euros; children under six enter free.
The engine compiles the graph for the shapes that it will see.
Quantization stores a number in eight bits instead of thirty-two.
The score of a pair must not depend on its neighbours. Rain is expected in the north, sunshine in the south.
The recipe asks for two eggs, butter and a pinch of salt. Nobody remembered where the old map had been hidden.
""".strip().splitlines()


class ActivationPlace(StrEnum):
    """Where a generation of sentence-transformers writes down the activation of a cross-encoder."""

    FOLDER = "config_sentence_transformers.json"
    CONFIG = "config.json, sentence_transformers.activation_fn"
    OLD_CONFIG = "config.json, sbert_ce_default_activation_function"


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What a family of models differs in."""

    model_type: str
    make_tokenizer: Callable[[], PreTrainedTokenizerFast]
    config: Mapping[str, Any] = field(default_factory=dict)
    first_position: int = 0
    """Positions that come before the first token's."""
    takes_token_types: bool = False
    """Whether the model reads ``token_type_ids``."""


def save_tiny_model(
    folder: Path,
    architecture: str = "bert",
    *,
    labels: int = 1,
    seed: int = 0,
    activation: str | None = None,
    activation_place: ActivationPlace = ActivationPlace.CONFIG,
    **config: Any,
) -> Path:
    """Save a tiny cross-encoder whose logits differ clearly from pair to pair.

    Args:
        folder: Where to; is made.
        architecture: A key of :data:`ARCHITECTURES`.
        labels: Columns of the logits.
        seed: Of the weights.
        activation: The dotted name of a torch class, written down at ``activation_place``; None leaves it out.
        activation_place: Where.
        **config: Further fields of the model's config.

    Returns:
        ``folder``.
    """
    family = ARCHITECTURES[architecture]
    tokenizer = family.make_tokenizer()
    model = _make_model(family, tokenizer, labels, seed, config)
    if activation is not None and activation_place is ActivationPlace.CONFIG:
        model.config.sentence_transformers = {"activation_fn": activation}
    if activation is not None and activation_place is ActivationPlace.OLD_CONFIG:
        model.config.sbert_ce_default_activation_function = activation
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if activation is not None and activation_place is ActivationPlace.FOLDER:
        (folder / ActivationPlace.FOLDER).write_text(json.dumps({"activation_fn": activation}))
    return folder


def edit_json(path: Path, **changes: Any) -> None:
    """Set fields of a JSON object on disk; None removes one."""
    document = json.loads(path.read_text())
    document.update(changes)
    path.write_text(json.dumps({name: value for name, value in document.items() if value is not None}))


def _make_model(
    family: Architecture, tokenizer: PreTrainedTokenizerFast, labels: int, seed: int, config: Mapping[str, Any]
) -> PreTrainedModel:
    fields: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": MAX_LENGTH + family.first_position,
        "initializer_range": 0.3,
        "num_labels": labels,
        "pad_token_id": tokenizer.pad_token_id,
        **family.config,
        **config,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made: PreTrainedModel = AutoModelForSequenceClassification.from_config(
            AutoConfig.for_model(family.model_type, **fields)
        )
        for name, parameter in made.named_parameters():
            if name in _OUTPUT_WEIGHTS:
                torch.nn.init.normal_(parameter)
    return made


def _fast(
    kind: type[PreTrainedTokenizerFast], train: Callable[[], str], **options: Any
) -> Callable[[], PreTrainedTokenizerFast]:
    """A maker of tokenizers of one class, on a ``tokenizer.json`` that is trained once."""
    return lambda: kind(tokenizer_object=Tokenizer.from_str(train()), model_max_length=MAX_LENGTH, **options)


@cache
def _word_piece() -> str:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fill_word_piece(tokenizer, TEXTS, size=_PIECES, special_tokens=_BERT_TOKENS)
    return _join(tokenizer, single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1")


@cache
def _byte_pairs_of_roberta() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=_PIECES,
        special_tokens=_ROBERTA_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    end, start = (("</s>", 2), ("<s>", 0))
    tokenizer.post_processor = processors.RobertaProcessing(end, start, add_prefix_space=False)
    return str(tokenizer.to_str())


@cache
def _byte_pairs_of_modernbert() -> str:
    tokenizer = Tokenizer.from_str(_byte_pairs_of_roberta())
    return _join(tokenizer, single="<s> $A </s>", pair="<s> $A </s> $B </s>")


@cache
def _unigram_of_xlm_roberta() -> str:
    tokenizer = _make_unigram(_ROBERTA_TOKENS, unknown="<unk>")
    return _join(tokenizer, single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>")


@cache
def _unigram_of_deberta() -> str:
    tokenizer = _make_unigram(_BERT_TOKENS, unknown="[UNK]")
    return _join(tokenizer, single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1")


def _make_unigram(special_tokens: list[str], unknown: str) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    fill_unigram(tokenizer, TEXTS, size=_PIECES, special_tokens=special_tokens, unknown=unknown)
    return tokenizer


def _join(tokenizer: Tokenizer, *, single: str, pair: str) -> str:
    names = {piece.partition(":")[0] for piece in pair.split()} - {"$A", "$B"}
    special = [(name, tokenizer.token_to_id(name)) for name in names]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)
    return str(tokenizer.to_str())


ARCHITECTURES: Mapping[str, Architecture] = {
    "bert": Architecture(model_type="bert", make_tokenizer=_fast(BertTokenizerFast, _word_piece), takes_token_types=True),
    "roberta": Architecture(
        model_type="roberta",
        make_tokenizer=_fast(RobertaTokenizerFast, _byte_pairs_of_roberta),
        config={"type_vocab_size": 1},
        first_position=2,
    ),
    "xlm-roberta": Architecture(
        model_type="xlm-roberta",
        make_tokenizer=_fast(XLMRobertaTokenizerFast, _unigram_of_xlm_roberta),
        config={"type_vocab_size": 1},
        first_position=2,
    ),
    "distilbert": Architecture(
        model_type="distilbert",
        make_tokenizer=_fast(DistilBertTokenizerFast, _word_piece),
        config={"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2},
    ),
    "electra": Architecture(
        model_type="electra",
        make_tokenizer=_fast(ElectraTokenizerFast, _word_piece),
        config={"embedding_size": 32},
        takes_token_types=True,
    ),
    "deberta-v2": Architecture(
        model_type="deberta-v2",
        make_tokenizer=_fast(DebertaV2TokenizerFast, _unigram_of_deberta),
        config={  # as DeBERTa-v3 has it: relative positions in buckets, no segments
            "relative_attention": True,
            "position_buckets": 16,
            "pos_att_type": ["p2c", "c2p"],
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
            "position_biased_input": False,
            "type_vocab_size": 0,
            "pooler_hidden_size": 32,
        },
    ),
    "modernbert": Architecture(
        model_type="modernbert",
        make_tokenizer=_fast(
            PreTrainedTokenizerFast,
            _byte_pairs_of_modernbert,
            pad_token="<pad>",
            cls_token="<s>",
            sep_token="</s>",
            model_input_names=["input_ids", "attention_mask"],
        ),
        config={  # one local and one global layer
            "global_attn_every_n_layers": 2,
            "local_attention": 16,
            "classifier_pooling": "mean",
            "cls_token_id": 0,
            "sep_token_id": 2,
            "bos_token_id": 0,
            "eos_token_id": 2,
        },
    ),
}

UNGATED = ExportOptions(gates=dict.fromkeys(Precision, OPEN_GATE))
"""For exporting tiny models: random weights lose more to int8 than trained ones do."""
