"""A small XLM-RoBERTa of three languages: its tokenizer is trained here on text in German, Japanese and English."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import XLMRobertaTokenizerFast

from support.pieces import fill_unigram
from support.tiny_models import MAX_LENGTH, save_tiny_model

TEXTS: dict[str, tuple[str, ...]] = {
    "de": (
        "Wie viele Menschen leben in Berlin?",
        "Berlin hat etwa 3,8 Millionen Einwohner und ist die größte Stadt Deutschlands.",
        "Die Museumsinsel in der Spree vereint fünf bedeutende Häuser.",
        "Wasser kocht auf Meereshöhe bei hundert Grad Celsius.",
        "Bei welcher Temperatur kocht Wasser?",
        "Der Zug nach Hamburg fährt um zwölf Uhr von Gleis sieben ab.",
        "Straßenbahnen überqueren täglich mehrere Brücken über den Fluss.",
        "Äpfel, Öl und Übermut: drei Wörter mit Umlauten.",
    ),
    "ja": (
        "ベルリンには何人が住んでいますか。",
        "ベルリンの人口は約三百八十万人で、ドイツ最大の都市です。",
        "東京は日本の首都であり、世界でも有数の大都市である。",
        "水は海面の高さでは百度で沸騰します。",
        "水は何度で沸騰しますか。",
        "ハンブルク行きの電車は正午に七番線から出発します。",
        "博物館島はシュプレー川の中にあり、五つの博物館があります。",
        "りんごとみかんにはビタミンが多く含まれています。",
    ),
    "en": (
        "How many people live in Berlin?",
        "Berlin has about 3.8 million inhabitants and is the largest city of Germany.",
        "Museum Island in the river Spree brings together five important houses.",
        "Water boils at one hundred degrees Celsius at sea level.",
        "At what temperature does water boil?",
        "The train to Hamburg leaves at noon from platform seven.",
        "Trams cross several bridges over the river every day.",
        "Apples and oranges are rich in vitamins.",
    ),
}
"""By language: a question, what answers it, and more."""

ODD_TEXTS = {
    "no spaces": "東京都に住んでいる人の数は約千四百万人であるベルリンより多い",
    "full-width letters": "\uff22\uff45\uff52\uff4c\uff49\uff4e \uff33\uff54\uff41\uff44\uff54 \uff13\uff0c\uff18",
    "half-width katakana": "\uff8d\uff9e\uff99\uff98\uff9d \uff84\uff73\uff77\uff6e\uff73",
    "combining marks": "gro\N{LATIN SMALL LETTER SHARP S}e Sta\N{COMBINING DIAERESIS}dte, か\u3099く, e\u0301\u0323\u0302",
    "ideographic space": "東京\u3000ベルリン\u3000水",
    "emoji": "Berlin \N{CITYSCAPE}\N{VARIATION SELECTOR-16} \N{WOMAN}\N{ZERO WIDTH JOINER}\N{GIRL} \U0001f1e9\U0001f1ea",
    "other scripts": "مدينة برلين กรุงเบอร์ลิน बर्लिन Берлин",
    "characters of no width": "Ber\N{ZERO WIDTH SPACE}lin\N{SOFT HYPHEN}er \N{RIGHT-TO-LEFT MARK}Stadt",
}
"""What a tokenizer of words does not expect."""


def save_trilingual_model(folder: Path) -> Path:
    """Save a tiny XLM-RoBERTa cross-encoder with random weights that reads :data:`TEXTS`; returns ``folder``."""
    save_tiny_model(folder, "xlm-roberta")
    tokenizer = XLMRobertaTokenizerFast(tokenizer_object=Tokenizer.from_str(_trained()), model_max_length=MAX_LENGTH)
    tokenizer.save_pretrained(folder)
    return folder


@cache
def _trained() -> str:
    tokenizer = Tokenizer(models.Unigram())
    # As XLM-R's: compatibility forms are folded, runs of spaces are one, and words begin with a mark.
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    texts = [text for spoken in TEXTS.values() for text in spoken]
    fill_unigram(tokenizer, texts, size=900, special_tokens=special, unknown="<unk>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return str(tokenizer.to_str())
