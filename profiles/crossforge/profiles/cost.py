"""The cost model: how long a batch takes, in three terms that can be read."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from crossforge.profiles.errors import InputError


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """The time of one batch on one worker while every other worker is busy too, of one variant on one machine.

    ``fixed_ms + batch x (per_token_ms x sequence + per_token_squared_ms x sequence^2)``: what a call costs whatever is in
    it; what grows with the tokens (the linear layers); what grows with pairs of tokens (attention).
    """

    fixed_ms: float
    per_token_ms: float
    per_token_squared_ms: float

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) not in (int, float) or not math.isfinite(value) or value < 0:
                raise InputError(f"{field.name} of a cost model is not a time", got=repr(value), allowed="0 or more")
        if self.row_ms(1) <= 0:
            raise InputError("a cost model needs a cost per token", got=str(self), allowed="one of the two above 0")

    def row_ms(self, sequence: int) -> float:
        """What each row of ``sequence`` tokens adds to a batch."""
        return sequence * (self.per_token_ms + self.per_token_squared_ms * sequence)

    def predict_ms(self, batch: int, sequence: int) -> float:
        """The time of ``batch`` rows, each padded to ``sequence`` tokens."""
        return self.fixed_ms + batch * self.row_ms(sequence)
