"""A hub id or a folder in; a model, its tokenizer and the meaning of its scores out."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossforge.export.bi_encoder import BiEncoder, read_bi_encoder
from crossforge.export.causal import CausalSource, check_decoder, read_causal
from crossforge.export.checkpoint import (
    Head,
    digest_weights,
    load_config,
    load_model,
    load_tokenizer,
    quiet_transformers,
)
from crossforge.export.json_files import read_object_if_there
from crossforge.export.lengths import read_pair_truncation, read_prompt_truncation, read_text_truncation
from crossforge.export.location import MODULES, Location, locate
from crossforge.export.options import SourceOptions
from crossforge.profiles import (
    Activation,
    InputError,
    MissingPackageError,
    Scoring,
    Source,
    SourceError,
    Truncation,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

SIMILARITY = Scoring(labels=("similarity",), activation=Activation.IDENTITY, ranking_label=0)
"""What the score of a pair is where texts are embedded."""
_ACTIVATIONS = {
    "Identity": Activation.IDENTITY,
    "Sigmoid": Activation.SIGMOID,
    "Softmax": Activation.SOFTMAX,
}


@dataclass(frozen=True, kw_only=True)
class LoadedSource:
    """A cross-encoder, or a bi-encoder, in memory."""

    model: PreTrainedModel
    """On the CPU, float32, in evaluation mode."""
    tokenizer: PreTrainedTokenizerFast
    source: Source
    scoring: Scoring
    truncation: Truncation
    bi_encoder: BiEncoder | None = None
    """What comes after the transformer, where the source embeds texts."""
    causal: CausalSource | None = None
    """Set where it is a language model that answers yes or no."""


def load_source(source: str, options: SourceOptions | None = None) -> LoadedSource:
    """Load a cross-encoder or a bi-encoder.

    Args:
        source: A local folder, a hub id, ``demo`` or ``demo-embedder``.
        options: Overrides and permissions.

    Raises:
        SourceError: There is no such source, or it is neither with weights that may be read.
        InputError: An option is for cross-encoders, and the source is a bi-encoder.
        MissingPackageError: The ``export`` extra is not installed.
    """
    options = options or SourceOptions()
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise MissingPackageError(package, extra="export", purpose="Exporting")
    location = locate(source, options)  # before the slow import: a typing error should not take seconds
    if location.facts is not None and location.is_bi_encoder:
        return _load_bi_encoder(source, location, location.facts, options)
    return _load_cross_encoder(source, location, options)


def _load_bi_encoder(source: str, location: Location, folder: Path, options: SourceOptions) -> LoadedSource:
    bi_encoder = read_bi_encoder(folder, name=source, allow_pickle=options.allow_pickle)
    _refuse_options_of_pairs(source, options)
    transformer = str(bi_encoder.transformer)
    with quiet_transformers():
        config = load_config(source, transformer, options)
        if config.is_encoder_decoder:
            raise SourceError(
                f"{source} embeds with an encoder and a decoder",
                got=config.model_type,
                allowed="a transformer of one of them",
            )
        model = load_model(source, transformer, options, head=None)
        tokenizer = load_tokenizer(source, transformer, options)
    if bi_encoder.lower_case:
        _lower_case(tokenizer)
    return LoadedSource(
        model=model,
        tokenizer=tokenizer,
        source=_origin(location, config, digest_weights(model, bi_encoder.dense)),
        scoring=SIMILARITY,
        truncation=read_text_truncation(source, config, tokenizer, options, bi_encoder),
        bi_encoder=bi_encoder,
    )


def _load_cross_encoder(source: str, location: Location, options: SourceOptions) -> LoadedSource:
    with quiet_transformers():
        config = load_config(source, location.name, options)
        head = _find_head(source, config, options)
        model = load_model(source, location.name, options, head)
        tokenizer = load_tokenizer(source, location.name, options)
    if head is Head.CAUSAL:
        causal = read_causal(source, location.facts, tokenizer, options.causal)
        truncation = read_prompt_truncation(source, config, tokenizer, options, causal.prompt)
    else:
        causal = None
        truncation = read_pair_truncation(source, config, tokenizer, options)
    return LoadedSource(
        model=model,
        tokenizer=tokenizer,
        source=_origin(location, config, digest_weights(model)),
        scoring=_read_scoring(location.facts, config, options, causal),
        truncation=truncation,
        causal=causal,
    )


def _origin(location: Location, config: PretrainedConfig, weights_sha256: str) -> Source:
    revision = location.commit or getattr(config, "_commit_hash", None)
    return Source(id=location.public_id, revision=revision, weights_sha256=weights_sha256)


def _refuse_options_of_pairs(source: str, options: SourceOptions) -> None:
    named = {
        "--query-max-length": options.query_max_length,
        "--symmetric": options.symmetric or None,
        "--activation": options.activation,
        "--ranking-label": options.ranking_label,
    }
    if given := [*(name for name, value in named.items() if value is not None), *options.causal.given()]:
        raise InputError(
            f"{source} is a bi-encoder, which embeds each text by itself",
            got=", ".join(given),
            allowed="--max-length, for one text",
        )


def _find_head(source: str, config: PretrainedConfig, options: SourceOptions) -> Head:
    """Whether a model is a causal reranker or a cross-encoder; what is neither is refused."""
    architectures = list(config.architectures or ())
    if any(name.endswith(Head.CAUSAL) for name in architectures):
        check_decoder(source, config)
        if options.symmetric:
            raise SourceError(
                f"{source} reads a query and a passage within a prompt", got="--symmetric", fix="Leave it out."
            )
        return Head.CAUSAL
    if given := options.causal.given():
        raise SourceError(
            f"{source} is no language model: nothing stands around its pairs",
            got=", ".join(given),
            fix="Leave them out.",
        )
    if not any(name.endswith(Head.CLASSIFICATION) for name in architectures):
        raise SourceError(
            f"{source} has no classification head",
            got=", ".join(architectures) or "no architecture in its config",
            allowed=f"a cross-encoder (*{Head.CLASSIFICATION}), or a bi-encoder's folder with its {MODULES}",
        )
    return Head.CLASSIFICATION


def _read_scoring(
    facts: Path | None, config: PretrainedConfig, options: SourceOptions, causal: CausalSource | None
) -> Scoring:
    count = int(config.num_labels) if causal is None else 1
    names = (config.id2label or {}) if causal is None else {0: causal.label}
    labels = tuple(str(names.get(i, f"LABEL_{i}")) for i in range(count))
    label = options.ranking_label
    if label is None and count <= 2:
        label = count - 1  # of two labels the second means "relevant", as in monoBERT
    if label is not None and not 0 <= label < count:
        raise SourceError("there is no such ranking label", got=label, allowed=f"0 to {count - 1} ({', '.join(labels)})")
    activation = options.activation or _read_activation(facts, config, count)
    return Scoring(labels=labels, activation=activation, ranking_label=label)


def _read_activation(facts: Path | None, config: PretrainedConfig, labels: int) -> Activation:
    """The activation that sentence-transformers would apply, whichever generation of it wrote the config."""
    own = {} if facts is None else read_object_if_there(facts / "config_sentence_transformers.json")
    newest = own.get("activation_fn")
    newer = (getattr(config, "sentence_transformers", None) or {}).get("activation_fn")
    older = getattr(config, "sbert_ce_default_activation_function", None)
    named: Any = newest or newer or older
    if named is None:
        # What sentence-transformers does where the config is silent.
        return Activation.SIGMOID if labels == 1 else Activation.IDENTITY
    known = _ACTIVATIONS.get(str(named).rpartition(".")[2])
    if known is None:
        raise SourceError(
            "the checkpoint applies an activation that crossforge does not know",
            got=named,
            allowed=", ".join(_ACTIVATIONS),
            fix="Name one with --activation.",
        )
    return known


def _lower_case(tokenizer: PreTrainedTokenizerFast) -> None:
    """Lowercase before the tokenizer's own normalization, as sentence-transformers does where it is told to."""
    from tokenizers.normalizers import Lowercase, Normalizer
    from tokenizers.normalizers import Sequence as Normalizers

    own: Normalizer | None = tokenizer.backend_tokenizer.normalizer
    tokenizer.backend_tokenizer.normalizer = Normalizers([Lowercase(), *([] if own is None else [own])])
