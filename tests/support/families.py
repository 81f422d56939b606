"""Tiny tokenizers of the three families that cross-encoders come in, made here instead of downloaded."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import islice, product

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from crossforge.profiles import PairTemplate, SpecialTokens
from support.pieces import fill_unigram

SENTENCES = (
    "the quick brown fox jumps over the lazy dog",
    "where is the city of Berlin and how many people live there?",
    "Berlin has a population of 3,520,031 registered inhabitants.",
    "a cross-encoder reads the query and the passage together",
    "größere Städte sind schöner, naïve café visitors say",
)
BERT_TOKENS = (
    "[PAD]", "[UNK]", "[CLS]", "[SEP]",
    "the", "city", "berlin", "query", "passage", "people", "live", "where", "is", "##ing",
    *"abcdefghijklmnopqrstuvwxyz0123456789.,?!-'",
    *(f"##{character}" for character in "abcdefghijklmnopqrstuvwxyz0123456789"),
)  # fmt: skip
_FAIRSEQ_TOKENS = ["<s>", "<pad>", "</s>", "<unk>"]
FAMILIES = ("bert", "roberta", "xlm_roberta")

BERT_TEMPLATE = PairTemplate(
    prefix=SpecialTokens(ids=(2,), type_ids=(0,)),
    separator=SpecialTokens(ids=(3,), type_ids=(0,)),
    suffix=SpecialTokens(ids=(3,), type_ids=(1,)),
    query_type_id=0,
    passage_type_id=1,
)
ROBERTA_TEMPLATE = PairTemplate(
    prefix=SpecialTokens(ids=(0,), type_ids=(0,)),
    separator=SpecialTokens(ids=(2, 2), type_ids=(0, 0)),
    suffix=SpecialTokens(ids=(2,), type_ids=(0,)),
    query_type_id=0,
    passage_type_id=0,
)
TEMPLATES = {"bert": BERT_TEMPLATE, "roberta": ROBERTA_TEMPLATE, "xlm_roberta": ROBERTA_TEMPLATE}
PAD_TOKEN_IDS = {"bert": 0, "roberta": 1, "xlm_roberta": 1}


def make_tokenizer(family: str = "bert") -> Tokenizer:
    """A fresh tokenizer, which the caller may alter."""
    return Tokenizer.from_str(_serialized(family))


def word_tokenizer(pair_template: str | None) -> Tokenizer:
    """One token a word, and any pair template."""
    vocabulary = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, **{letter: i for i, letter in enumerate("abcdefgh", start=3)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=BERT_TOKENS[1]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if pair_template is not None:
        special = [("[CLS]", 1), ("[SEP]", 2)]
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair=pair_template, special_tokens=special
        )
    return tokenizer


def different_passages(count: int, *, words: int = 1) -> list[str]:
    """Passages that differ, each of so many words of one BERT token: equal ones would be computed once."""
    one_token = [token for token in BERT_TOKENS[4:] if token.isalnum()]
    passages = [" ".join(chosen) for chosen in islice(product(one_token, repeat=words), count)]
    assert len(passages) == count, f"there are only {len(passages)} passages of {words} words"
    return passages


@cache
def _serialized(family: str) -> str:
    makers: dict[str, Callable[[], Tokenizer]] = {"bert": _bert, "roberta": _roberta, "xlm_roberta": _xlm_roberta}
    return str(makers[family]().to_str())


def _bert() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(BERT_TOKENS)}, unk_token=BERT_TOKENS[1]))
    tokenizer.add_special_tokens(list(BERT_TOKENS[:4]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def _roberta() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=_FAIRSEQ_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(
        sep=("</s>", 2), cls=("<s>", 0), trim_offsets=True, add_prefix_space=False
    )
    return tokenizer


def _xlm_roberta() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    fill_unigram(tokenizer, SENTENCES, size=120, special_tokens=_FAIRSEQ_TOKENS, unknown="<unk>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer
