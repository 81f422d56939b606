"""What sentence-transformers' arguments mean for a bundle: read, or refused in words. Pure.

docs/sentence-transformers.md lists all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np

from crossforge.profiles import ExecutionProvider, InputError, Manifest, Truncation
from crossforge.runtime.precision import AUTO

P = ParamSpec("P")
R = TypeVar("R")

_DEVICES = {
    "cpu": ExecutionProvider.CPU,
    "cuda": ExecutionProvider.CUDA,
    "cuda:0": ExecutionProvider.CUDA,
}
_ORT_PROVIDERS = {
    "CPUExecutionProvider": ExecutionProvider.CPU,
    "CUDAExecutionProvider": ExecutionProvider.CUDA,
    "TensorrtExecutionProvider": ExecutionProvider.TENSORRT,
}
_BACKENDS = ("torch", "onnx")


def renamed(*ignored: str, **renames: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let keyword arguments also be given by the names that they once had, and drop those that had no effect.

    Args:
        ignored: Old arguments that sentence-transformers accepts without effect.
        renames: Old names and what they are called today.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            for old in ignored:
                kwargs.pop(old, None)
            for old, new in renames.items():
                if old in kwargs:
                    if new in kwargs:
                        raise InputError(f"{old} is the old name of {new}, and both are given", allowed="one of them")
                    kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return wrapper

    return decorate


def refuse(value: object, name: str, fix: str) -> None:
    """Refuse an argument that is given.

    Raises:
        InputError: ``value`` is not None and not empty.
    """
    if value is not None and value != {}:
        raise InputError(f"a bundle does not take {name}", got=f"{value!r:.80}", allowed="None", fix=fix)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How to load a bundle."""

    provider: str
    precision: str
    strict: bool
    """Whether to refuse another provider than the one that was named."""


def read_choice(
    manifest: Manifest, *, device: object, backend: str, precision: str, model_kwargs: Mapping[str, Any] | None
) -> Choice:
    """What ``device``, ``backend``, ``precision`` and ``model_kwargs`` ask for.

    Raises:
        InputError: One of them cannot be had, or two contradict each other.
    """
    if backend not in _BACKENDS:
        raise InputError("a bundle does not run in this backend", got=repr(backend), allowed=", ".join(_BACKENDS))
    options = dict(model_kwargs or {})
    file_name, ort_provider, export = (options.pop(name, None) for name in ("file_name", "provider", "export"))
    if export:
        raise InputError("a bundle is exported already", got="export=True", allowed="export=False")
    refuse(options, "these model_kwargs", "Of them a bundle knows file_name, provider and export=False.")
    provider = None if device is None else provider_of(device)
    if ort_provider is not None:
        wanted = _one_of(_ORT_PROVIDERS, ort_provider, "provider")
        if provider not in (None, wanted):
            raise InputError("device and provider contradict each other", got=f"{device} and {ort_provider}")
        provider = wanted
    if file_name is not None:
        by_name = {name: kind for kind, variant in manifest.variants.items() for name in _names(variant.path)}
        wanted_precision = _one_of(by_name, file_name, "file_name")
        if precision not in (AUTO, wanted_precision):
            raise InputError("precision and file_name contradict each other", got=f"{precision} and {file_name}")
        precision = wanted_precision
    return Choice(provider=provider or AUTO, precision=precision, strict=provider is not None)


def provider_of(device: object) -> ExecutionProvider:
    """The provider of a torch device, or of its name.

    Raises:
        InputError: There is none.
    """
    return _one_of(_DEVICES, str(device), "device")


def with_max_length(manifest: Manifest, max_length: int | None) -> Manifest:
    """A manifest whose pairs are cut at ``max_length`` tokens; None leaves it.

    A query may have 64 of them, or half where that is less, by the rule of ``crossforge export``.

    Raises:
        InputError: It is more than the bundle was made for, or leaves no room for both texts.
    """
    if max_length is None:
        return manifest
    special, made_for = manifest.pair_template.special_token_count, manifest.truncation
    if not special + 2 <= max_length <= made_for.max_length:
        raise InputError(
            "max_length does not suit the bundle",
            got=max_length,
            allowed=f"{special + 2} to {made_for.max_length}",
            fix="For longer pairs, export it again with --max-length.",
        )
    half = max(1, (max_length - special - 1) // 2)
    query = None if made_for.query_max_length is None else min(made_for.query_max_length, half)
    return replace(manifest, truncation=Truncation(max_length=max_length, query_max_length=query, side=made_for.side))


def as_pairs(inputs: Any) -> tuple[list[Any], bool]:
    """Pairs as a list, and whether ``inputs`` was one pair.

    Args:
        inputs: One pair, as a list, a tuple or an array of two strings; or any iterable of pairs.

    Raises:
        InputError: It is none of these.
    """
    if isinstance(inputs, np.ndarray):
        return (inputs.tolist(), False) if inputs.ndim != 1 or not inputs.size else ([inputs.tolist()], True)
    if isinstance(inputs, str | bytes | Mapping) or not hasattr(inputs, "__iter__"):
        raise InputError("inputs are not pairs", got=f"{type(inputs).__name__} {inputs!r:.60}", allowed="pairs of texts")
    listed = list(inputs)
    if listed and isinstance(inputs, list | tuple) and not isinstance(listed[0], list | tuple | np.ndarray):
        return [listed], True
    return [pair.tolist() if isinstance(pair, np.ndarray) else pair for pair in listed], False


def choose_prompt(prompts: Mapping[str, str], default_name: str | None, prompt: str | None, prompt_name: str | None) -> str:
    """The text that goes before each query; a prompt wins over a name, and a name over the default.

    Raises:
        InputError: There is no prompt of this name.
    """
    if prompt is not None:
        return prompt
    name = default_name if prompt_name is None else prompt_name
    return "" if name is None else _one_of(prompts, name, "prompt name")


def _names(path: str) -> tuple[str, str]:
    return path, path.rpartition("/")[2]


T = TypeVar("T")


def _one_of(table: Mapping[str, T], name: str, what: str) -> T:
    if name not in table:
        raise InputError(f"there is no such {what} here", got=repr(name), allowed=", ".join(table) or "none")
    return table[name]
