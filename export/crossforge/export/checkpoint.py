"""A checkpoint's config, weights and tokenizer, through transformers; whatever it says is told as ours."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossforge.export.bi_encoder import DenseLayer
from crossforge.export.location import ALLOWED_SOURCES
from crossforge.export.options import SourceOptions
from crossforge.profiles import SourceError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast


class Head(StrEnum):
    """What a model has on its transformer; the end of its architecture's name."""

    CLASSIFICATION = "ForSequenceClassification"
    CAUSAL = "ForCausalLM"


def load_config(source: str, location: str, options: SourceOptions) -> PretrainedConfig:
    """Load a checkpoint's config; ``location`` is what transformers knows the source by.

    Raises:
        SourceError: It cannot be read, or brings Python code without permission.
    """
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
            allowed=ALLOWED_SOURCES,
        ) from error
    return config


def load_model(source: str, location: str, options: SourceOptions, head: Head | None) -> PreTrainedModel:
    """Load a checkpoint's weights: float32, on the CPU, in evaluation mode.

    Args:
        source: What an error calls it.
        location: What transformers knows it by.
        options: What it may do.
        head: What is on the transformer; None leaves it bare.

    Raises:
        SourceError: There are none that may be read, or some are missing.
    """
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
        headed = {Head.CAUSAL: AutoModelForCausalLM, Head.CLASSIFICATION: AutoModelForSequenceClassification}
        loader: Any = AutoModel if head is None else headed[head]
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
    if head is None and hasattr(model, "pooler"):  # BERT's own pooler, which an embedding does not read
        model.pooler = None
        missing = [name for name in missing if not name.startswith("pooler.")]
    if missing:
        scores = "A checkpoint whose head is missing would score at random; use one that was trained as a cross-encoder."
        raise SourceError(
            f"{source} lacks {len(missing)} of the tensors that a {type(model).__name__} needs",
            got=f"{missing[0]} and others missing" if len(missing) > 1 else f"{missing[0]} missing",
            fix="A checkpoint without them would embed at random." if head is None else scores,
        )
    loaded: PreTrainedModel = model.eval()
    return loaded


def load_tokenizer(source: str, location: str, options: SourceOptions) -> PreTrainedTokenizerFast:
    """Load a checkpoint's tokenizer.

    Raises:
        SourceError: It cannot be loaded, or is not a fast one.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(
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
    return tokenizer


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


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


class quiet_transformers:  # noqa: N801
    """Keep transformers' log to errors: what it warns of is checked here and raised."""

    def __enter__(self) -> None:
        from transformers.utils import logging

        self._before = logging.get_verbosity()
        logging.set_verbosity_error()

    def __exit__(self, *_: object) -> None:
        from transformers.utils import logging

        logging.set_verbosity(self._before)
