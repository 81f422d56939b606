"""A hub id or a folder in; a model, its tokenizer and the meaning of its scores out."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossforge.export.bi_encoder import BiEncoder, DenseLayer, is_bi_encoder, read_bi_encoder
from crossforge.export.causal import CausalOptions, CausalSource, check_decoder, read_causal, read_prompt_truncation
from crossforge.export.demo import DEMO, DEMO_EMBEDDER, find_demo_base, materialize_demo_model
from crossforge.profiles import (
    Activation,
    InputError,
    MissingPackageError,
    Scoring,
    Source,
    SourceError,
    Truncation,
    TruncationSide,
)
from crossforge.runtime.hub import is_hub_id

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

DEFAULT_QUERY_MAX_LENGTH = 64
"""monoBERT's contract (Nogueira and Cho, 2019); used where the source says nothing."""
_LARGEST_PLAUSIBLE_LENGTH = 1_000_000
"""Above this a tokenizer's model_max_length is a placeholder for "unknown"."""
_ALLOWED_SOURCES = "a model folder, a hub id, or the word demo or demo-embedder"
_HUB_TIMEOUT_S = 10.0
_MODULES = "modules.json"
SIMILARITY = Scoring(labels=("similarity",), activation=Activation.IDENTITY, ranking_label=0)
"""What the score of a pair is where texts are embedded."""
_HEAD = "ForSequenceClassification"
_CAUSAL_HEAD = "ForCausalLM"
_ACTIVATIONS = {
    "Identity": Activation.IDENTITY,
    "Sigmoid": Activation.SIGMOID,
    "Softmax": Activation.SOFTMAX,
}


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """What may be said about a source that it does not say itself, and what it may do."""

    revision: str | None = None
    max_length: int | None = None
    """Tokens of a pair, special tokens included; None takes the model's own limit."""
    query_max_length: int | None = None
    """Tokens that a query keeps; None takes 64, or less where a pair is short."""
    symmetric: bool = False
    """Neither text is a query: of a pair that is too long the longer text gives way."""
    activation: Activation | None = None
    ranking_label: int | None = None
    trust_remote_code: bool = False
    """Run Python code that comes with the checkpoint."""
    causal: CausalOptions = field(default_factory=CausalOptions)
    """How a language model scores a pair, where its folder does not say."""
    allow_pickle: bool = False
    """Read weights from pickle files, which can run code when they are read."""

    def __post_init__(self) -> None:
        if self.symmetric and self.query_max_length is not None:
            raise InputError(
                "two texts of equal standing have no query",
                got=f"symmetric and query_max_length {self.query_max_length}",
                allowed="one of the two",
            )


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
    location = _locate(source, options.revision)  # before the slow import: a typing error should not take seconds
    bi_encoder = None
    revision = None
    if (folder := _find_bi_encoder(source, location, options)) is not None:
        revision = None if folder == Path(location) else folder.name  # a snapshot's folder is named by its commit
        bi_encoder = read_bi_encoder(folder, name=source, allow_pickle=options.allow_pickle)
        location = str(bi_encoder.transformer)
        _refuse_options_of_pairs(source, options)
    import transformers

    with _quiet_transformers():
        config = _load_config(source, location, options)
        is_causal = False
        if bi_encoder is None:
            is_causal = _is_causal(source, config, options)
        elif config.is_encoder_decoder:
            raise SourceError(
                f"{source} embeds with an encoder and a decoder",
                got=config.model_type,
                allowed="a transformer of one of them",
            )
        model = _load_model(source, location, options, with_head=bi_encoder is None, is_causal=is_causal)
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                location, revision=options.revision, trust_remote_code=options.trust_remote_code
            )
        except Exception as error:
            raise SourceError(f"cannot load the tokenizer of {source} ({_first_line(error)})") from error
    if not getattr(tokenizer, "is_fast", False):
        raise SourceError(
            f"{source} has no tokenizer.json and none can be made of its tokenizer",
            got=type(tokenizer).__name__,
            allowed="a fast tokenizer",
        )
    origin = Source(
        id=source if source in (DEMO, DEMO_EMBEDDER) else _public_name(source),
        revision=revision or getattr(config, "_commit_hash", None),
        weights_sha256=digest_weights(model, () if bi_encoder is None else bi_encoder.dense),
    )
    if bi_encoder is not None:
        if bi_encoder.lower_case:
            _lower_case(tokenizer)
        return LoadedSource(
            model=model,
            tokenizer=tokenizer,
            source=origin,
            scoring=SIMILARITY,
            truncation=_read_text_truncation(source, config, tokenizer, options, bi_encoder),
            bi_encoder=bi_encoder,
        )
    causal = read_causal(source, location, tokenizer, options.causal) if is_causal else None
    return LoadedSource(
        model=model,
        tokenizer=tokenizer,
        source=origin,
        scoring=_read_scoring(location, config, options, causal),
        truncation=_read_truncation(source, config, tokenizer, options, causal),
        causal=causal,
    )


def digest_weights(model: PreTrainedModel, dense: Sequence[DenseLayer] = ()) -> str:
    """SHA-256 over the names and bytes of a model's tensors, in the order of their names, and of the layers after it."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    for layer in dense:
        digest.update(f"dense {layer}\n".encode())
        digest.update(layer.weight.tobytes() + (b"" if layer.bias is None else layer.bias.tobytes()))
    return digest.hexdigest()


def _locate(source: str, revision: str | None) -> str:
    if source == DEMO:
        return str(materialize_demo_model())
    if source == DEMO_EMBEDDER:
        return str(find_demo_base())
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file() and not (path / _MODULES).is_file():
            raise SourceError(f"the folder {source} holds no model: it has no config.json")
        return str(path)
    if path.exists():
        raise SourceError(f"{source} is a file", allowed=_ALLOWED_SOURCES)
    if not is_hub_id(source):
        raise SourceError(f"there is no folder {source}", allowed=_ALLOWED_SOURCES)
    _ask_hub(source, revision)
    return source


def _ask_hub(source: str, revision: str | None) -> None:
    """Ask the hub once for a model that is not in its cache: loading would ask for half a minute before it gave up."""
    from huggingface_hub import model_info, try_to_load_from_cache
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(try_to_load_from_cache(source, "config.json", revision=revision), str):
        return
    try:
        model_info(source, revision=revision, timeout=_HUB_TIMEOUT_S)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        at = f" at revision {revision}" if revision else ""
        raise SourceError(
            f"there is no folder {source}, and the hub has no such model{at} that you may read", allowed=_ALLOWED_SOURCES
        ) from error
    except OSError as error:  # no network, offline mode, a timeout, an HTTP error
        raise SourceError(
            f"there is no folder {source}, and no model hub answers",
            got=type(error).__name__,
            allowed=_ALLOWED_SOURCES,
            fix="Check the connection, or give a local folder.",
        ) from error


def _load_config(source: str, location: str, options: SourceOptions) -> PretrainedConfig:
    from transformers import AutoConfig

    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            location, revision=options.revision, trust_remote_code=options.trust_remote_code
        )
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise SourceError(
                f"{source} brings Python code of its own", fix="If you trust it, add --trust-remote-code."
            ) from error
        if Path(location).is_dir():
            raise SourceError(f"cannot read the config of {source} ({_first_line(error)})") from error
        raise SourceError(
            f"{source} is neither a folder here nor a model that the hub answers for",
            got=_first_line(error),
            allowed=_ALLOWED_SOURCES,
        ) from error
    return config


def _find_bi_encoder(source: str, location: str, options: SourceOptions) -> Path | None:
    """The folder of a bi-encoder, fetched from the hub where it is there; None for anything else."""
    folder = Path(location)
    if not folder.is_dir():
        from huggingface_hub import hf_hub_download, snapshot_download
        from huggingface_hub.errors import EntryNotFoundError

        try:
            modules = hf_hub_download(location, _MODULES, revision=options.revision)
        except (EntryNotFoundError, OSError):  # it has none; or is in the cache without it, and no hub answers
            return None
        if not is_bi_encoder(_read_json(Path(modules))):
            return None
        patterns = ["*.json", "*.txt", "*.model", "*.safetensors", *(["*.bin"] if options.allow_pickle else [])]
        try:
            folder = Path(snapshot_download(location, revision=options.revision, allow_patterns=patterns))
        except OSError as error:
            raise SourceError(f"cannot fetch {source} from the hub ({_first_line(error)})") from error
    return folder if is_bi_encoder(_read_json(folder / _MODULES)) else None


def _refuse_options_of_pairs(source: str, options: SourceOptions) -> None:
    named = {
        "--query-max-length": options.query_max_length,
        "--activation": options.activation,
        "--ranking-label": options.ranking_label,
    }
    if given := [*(name for name, value in named.items() if value is not None), *options.causal.given()]:
        raise InputError(
            f"{source} is a bi-encoder, which embeds each text by itself",
            got=", ".join(given),
            allowed="--max-length, for one text",
        )


def _is_causal(source: str, config: PretrainedConfig, options: SourceOptions) -> bool:
    """Whether a model is a causal reranker; what is neither that nor a cross-encoder is refused."""
    architectures = list(config.architectures or ())
    if any(name.endswith(_CAUSAL_HEAD) for name in architectures):
        check_decoder(source, config)
        if options.symmetric:
            raise SourceError(
                f"{source} reads a query and a passage within a prompt", got="--symmetric", fix="Leave it out."
            )
        return True
    if given := options.causal.given():
        raise SourceError(
            f"{source} is no language model: nothing stands around its pairs",
            got=", ".join(given),
            fix="Leave them out.",
        )
    if not any(name.endswith(_HEAD) for name in architectures):
        raise SourceError(
            f"{source} has no classification head",
            got=", ".join(architectures) or "no architecture in its config",
            allowed=f"a cross-encoder (*{_HEAD}), or a bi-encoder's folder with its {_MODULES}",
        )
    return False


def _load_model(source: str, location: str, options: SourceOptions, *, with_head: bool, is_causal: bool) -> PreTrainedModel:
    import torch
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

    folder = Path(location)
    if folder.is_dir() and not options.allow_pickle and not list(folder.glob("*.safetensors")):
        pickles = ", ".join(sorted(path.name for path in folder.glob("*.bin")))
        if pickles:
            raise SourceError(
                f"{source} has its weights only as a pickle, which can run code when it is read",
                got=pickles,
                allowed="*.safetensors",
                fix="If you trust it, add --allow-pickle.",
            )
        raise SourceError(f"{source} holds no weights", allowed="*.safetensors")
    try:
        headed = AutoModelForCausalLM if is_causal else AutoModelForSequenceClassification
        loader: Any = headed if with_head else AutoModel
        model, info = loader.from_pretrained(
            location,
            revision=options.revision,
            trust_remote_code=options.trust_remote_code,
            use_safetensors=None if options.allow_pickle else True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:
        raise SourceError(f"cannot load the weights of {source} ({_first_line(error)})") from error
    missing = sorted(info["missing_keys"])
    if not with_head and hasattr(model, "pooler"):  # BERT's own pooler, which an embedding does not read
        model.pooler = None
        missing = [name for name in missing if not name.startswith("pooler.")]
    if missing:
        head = "A checkpoint whose head is missing would score at random; use one that was trained as a cross-encoder."
        raise SourceError(
            f"{source} lacks {len(missing)} of the tensors that a {type(model).__name__} needs",
            got=f"{missing[0]} and others missing" if len(missing) > 1 else f"{missing[0]} missing",
            fix=head if with_head else "A checkpoint without them would embed at random.",
        )
    loaded: PreTrainedModel = model.eval()
    return loaded


def _read_scoring(location: str, config: PretrainedConfig, options: SourceOptions, causal: CausalSource | None) -> Scoring:
    count = int(config.num_labels) if causal is None else 1
    names = (config.id2label or {}) if causal is None else {0: causal.label}
    labels = tuple(str(names.get(i, f"LABEL_{i}")) for i in range(count))
    label = options.ranking_label
    if label is None and count <= 2:
        label = count - 1  # of two labels the second means "relevant", as in monoBERT
    if label is not None and not 0 <= label < count:
        raise SourceError("there is no such ranking label", got=label, allowed=f"0 to {count - 1} ({', '.join(labels)})")
    activation = options.activation or _read_activation(location, config, count)
    return Scoring(labels=labels, activation=activation, ranking_label=label)


def _read_activation(location: str, config: PretrainedConfig, labels: int) -> Activation:
    """The activation that sentence-transformers would apply, whichever generation of it wrote the config."""
    folder = _read_json(Path(location) / "config_sentence_transformers.json")
    newest = folder.get("activation_fn") if isinstance(folder, dict) else None
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


def _read_truncation(
    source: str,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerFast,
    options: SourceOptions,
    causal: CausalSource | None,
) -> Truncation:
    limits = [int(tokenizer.model_max_length)] if tokenizer.model_max_length < _LARGEST_PLAUSIBLE_LENGTH else []
    if (positions := _usable_positions(config)) is not None:
        limits.append(positions)
    if causal is not None:
        limit = min(limits, default=None)
        lengths = {"max_length": options.max_length, "query_max_length": options.query_max_length}
        return read_prompt_truncation(source, causal.prompt, tokenizer, limit, **lengths)
    if options.max_length is not None:
        limits = limits or [options.max_length]
    if not limits:
        raise SourceError(f"{source} does not say how long a pair may be", fix="Say it with --max-length.")
    longest = min(limits)
    max_length = longest if options.max_length is None else options.max_length
    special = tokenizer.num_special_tokens_to_add(pair=True)
    if not special + 2 <= max_length <= longest:
        raise SourceError(f"max_length does not suit {source}", got=max_length, allowed=f"{special + 2} to {longest}")
    room = max_length - special - 1
    query_max_length = options.query_max_length
    if query_max_length is None:
        query_max_length = min(DEFAULT_QUERY_MAX_LENGTH, max(1, room // 2))
    if not 0 < query_max_length <= room:
        raise SourceError("query_max_length leaves no room for a passage", got=query_max_length, allowed=f"1 to {room}")
    side = TruncationSide(str(getattr(tokenizer, "truncation_side", "right")))
    return Truncation(max_length=max_length, query_max_length=None if options.symmetric else query_max_length, side=side)


def _read_text_truncation(
    source: str,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerFast,
    options: SourceOptions,
    bi_encoder: BiEncoder,
) -> Truncation:
    """What one text may have. A query of its own there is not, so ``query_max_length`` says what it can at most."""
    positions = _usable_positions(config)
    of_tokenizer = int(tokenizer.model_max_length) if tokenizer.model_max_length < _LARGEST_PLAUSIBLE_LENGTH else None
    said = bi_encoder.max_length or of_tokenizer or positions
    wanted = options.max_length or said
    if wanted is None:
        raise SourceError(f"{source} does not say how long a text may be", fix="Say it with --max-length.")
    longest = positions or wanted
    max_length = min(wanted, longest) if options.max_length is None else wanted
    special = tokenizer.num_special_tokens_to_add(pair=False)
    if not special + 2 <= max_length <= longest:
        raise SourceError(f"max_length does not suit {source}", got=max_length, allowed=f"{special + 2} to {longest}")
    side = TruncationSide(str(getattr(tokenizer, "truncation_side", "right")))
    return Truncation(max_length=max_length, query_max_length=max_length - special - 1, side=side)


def _lower_case(tokenizer: PreTrainedTokenizerFast) -> None:
    """Lowercase before the tokenizer's own normalization, as sentence-transformers does where it is told to."""
    from tokenizers.normalizers import Lowercase, Normalizer
    from tokenizers.normalizers import Sequence as Normalizers

    own: Normalizer | None = tokenizer.backend_tokenizer.normalizer
    tokenizer.backend_tokenizer.normalizer = Normalizers([Lowercase(), *([] if own is None else [own])])


def _usable_positions(config: PretrainedConfig) -> int | None:
    """Tokens that the position embeddings reach; None where positions are relative and without a table."""
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return None
    if getattr(config, "model_type", "") in _COUNTS_POSITIONS_FROM_PADDING:
        return positions - int(config.pad_token_id or 0) - 1
    return positions


_COUNTS_POSITIONS_FROM_PADDING = frozenset(
    {
        "camembert",
        "data2vec-text",
        "ibert",
        "longformer",
        "mpnet",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    }
)
"""Families whose first token sits at position ``pad_token_id + 1``, so that 514 positions hold 512 tokens."""


def _public_name(source: str) -> str:
    path = Path(source).expanduser()
    return path.resolve().name if path.is_dir() else source


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


class _quiet_transformers:  # noqa: N801
    """Keep transformers' log to errors: what it warns of is checked here and raised."""

    def __enter__(self) -> None:
        from transformers.utils import logging

        self._before = logging.get_verbosity()
        logging.set_verbosity_error()

    def __exit__(self, *_: object) -> None:
        from transformers.utils import logging

        logging.set_verbosity(self._before)
