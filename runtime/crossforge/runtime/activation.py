"""Logits to scores, always in float32 and without overflow."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crossforge.profiles import Activation, InputError

Floats = NDArray[np.float32]


def activate(logits: Floats, activation: Activation) -> Floats:
    """Apply an activation to logits, float32 [n, labels] -> float32 [n, labels]."""
    if activation is Activation.SIGMOID:
        # exp of a negative number only: 1/(1+e^-x) for x >= 0 and e^x/(1+e^x) below.
        decay = np.exp(-np.abs(logits))
        return np.where(logits >= 0, 1 / (1 + decay), decay / (1 + decay)).astype(np.float32)
    if activation is Activation.SOFTMAX:
        return np.exp(log_softmax(logits))
    return logits


def log_softmax(logits: Floats) -> Floats:
    """Logarithm of the softmax over labels, float32 [n, labels] -> float32 [n, labels]."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def relevance(logits: Floats, ranking_label: int) -> Floats:
    """The number that ranks, float32 [n, labels] -> float32 [n].

    With one label that is the logit. With several it is the log-probability of the ranking label, as in monoBERT
    (Nogueira and Cho, 2019): a single logit of several does not order pairs, because the others differ from pair to pair.
    """
    return logits[:, 0] if logits.shape[1] == 1 else log_softmax(logits)[:, ranking_label]


def parse_activation(activation: Activation | str | None, usual: Activation) -> Activation:
    """What a caller passes as ``activation``; None gives the usual one.

    Raises:
        InputError: There is no such activation.
    """
    if activation is None:
        return usual
    try:
        return Activation(activation)
    except ValueError:
        raise InputError("unknown activation", got=repr(activation), allowed=", ".join(Activation)) from None
