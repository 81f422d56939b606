"""Torch tensors, for callers who have torch: the one module of the runtime that imports it, and only when asked."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossforge.profiles import InputError, MissingPackageError

Floats = NDArray[np.float32]


def to_tensor(scores: NDArray[Any]) -> Any:
    """An array as a ``torch.Tensor`` on the CPU, of the same shape and dtype.

    Raises:
        MissingPackageError: torch is not installed.
    """
    return import_torch("Returning tensors").from_numpy(np.ascontiguousarray(scores))


def apply_to_tensor(function: Callable[[Any], Any], logits: Floats) -> Floats:
    """Call a function with logits, float32 [n, labels], as a tensor.

    Returns:
        float32 [n] or [n, anything], as the function gives it.

    Raises:
        InputError: The function does not answer with a row for each pair.
        MissingPackageError: torch is not installed.
    """
    torch = import_torch("Calling an activation function")
    with torch.no_grad():
        answer = function(torch.from_numpy(logits))
    scores = np.asarray(answer.float() if isinstance(answer, torch.Tensor) else answer, dtype=np.float32)
    if scores.shape[:1] != logits.shape[:1]:
        raise InputError(
            "the activation function does not answer with a row for each pair",
            got=f"shape {list(scores.shape)}",
            allowed=f"[{len(logits)}] or [{len(logits)}, labels]",
        )
    return scores


def import_torch(purpose: str) -> ModuleType:
    """Torch, for a purpose that an error can name.

    Raises:
        MissingPackageError: torch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingPackageError("torch", extra=None, purpose=purpose) from error
    return torch
