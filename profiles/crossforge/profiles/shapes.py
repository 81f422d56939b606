"""The shapes that an engine is built for.

A TensorRT engine is compiled for *optimization profiles*. Each is a box of shapes: it takes any batch within [min, max], its
kernels are tuned at opt, and its memory is reserved for max.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from crossforge.profiles.errors import InputError
from crossforge.profiles.jsonio import DecodeError, decode


@dataclass(frozen=True, kw_only=True)
class ShapeRange:
    """The sizes that one dimension may take; both ends belong to it."""

    min: int
    opt: int
    """What the kernels are tuned for."""
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            got = f"min {self.min}, opt {self.opt}, max {self.max}"
            raise InputError("a range is out of order", got=got, allowed="1 <= min <= opt <= max")

    def __contains__(self, size: int) -> bool:
        return self.min <= size <= self.max

    def __str__(self) -> str:
        return f"{self.min}-{self.max}"


@dataclass(frozen=True, kw_only=True)
class OptimizationProfile:
    """A box of shapes ``[batch, sequence]``."""

    batch_size: ShapeRange
    """Pairs of a batch."""
    sequence_length: ShapeRange
    """Tokens that each pair is padded to."""

    def fits(self, batch_size: int, sequence_length: int) -> bool:
        """Whether the box holds a shape."""
        return batch_size in self.batch_size and sequence_length in self.sequence_length

    def __str__(self) -> str:
        return f"{self.batch_size} x {self.sequence_length}"


def check_profiles(profiles: Sequence[OptimizationProfile], *, max_length: int | None = None) -> None:
    """Make sure that profiles together take every batch that a request can lead to.

    Args:
        profiles: In any order; they may overlap.
        max_length: Tokens of the longest pair that the tokenizer lets through, where that is known.

    Raises:
        InputError: There is no profile; one does not take a batch of one pair; sequence lengths from 1 on are left out
            between two profiles or before the first; or none reaches ``max_length``.
    """
    if not profiles:
        raise InputError("there is no optimization profile", allowed="one or more")
    reached = 0
    for profile in sorted(profiles, key=_size):
        if 1 not in profile.batch_size:
            raise InputError(
                f"profile {profile} takes no batch of one pair",
                got=f"batch_size.min {profile.batch_size.min}",
                allowed=1,
                fix="A request may leave a single pair over.",
            )
        if profile.sequence_length.min > reached + 1:
            raise InputError(
                f"profile {profile} leaves out sequence lengths",
                got=f"sequence_length.min {profile.sequence_length.min}",
                allowed=f"up to {reached + 1}",
                fix="Start each profile right after the one before it, and the first at 1.",
            )
        reached = profile.sequence_length.max
    if max_length is not None and reached < max_length:
        raise InputError(
            "no profile takes the longest pairs",
            got=f"sequence lengths up to {reached}",
            allowed=f"up to the model's max_length, {max_length}",
        )


def smallest_profile(
    profiles: Sequence[OptimizationProfile], *, batch_size: int, sequence_length: int
) -> OptimizationProfile:
    """The profile to run a batch in: of those that take its shape, the one of the shortest sequences, then batches.

    Raises:
        InputError: None takes it.
    """
    fitting = [profile for profile in profiles if profile.fits(batch_size, sequence_length)]
    if not fitting:
        allowed = ", ".join(str(profile) for profile in sorted(profiles, key=_size))
        raise InputError("no profile takes this batch", got=f"{batch_size} x {sequence_length}", allowed=allowed)
    return min(fitting, key=_size)


def batch_limits(profiles: Sequence[OptimizationProfile]) -> dict[int, int]:
    """The upper edge of each sequence-length bucket, ascending -> the most pairs that a batch in it may have."""
    return {profile.sequence_length.max: profile.batch_size.max for profile in sorted(profiles, key=_size)}


def read_profiles(path: str | Path) -> tuple[OptimizationProfile, ...]:
    """Read profiles from a TOML file, as :func:`profiles_to_toml` writes it.

    Raises:
        InputError: The file cannot be read, has an unknown or missing key or a bad value, or its profiles leave shapes out.
    """
    import tomllib  # some milliseconds, and few processes read one

    path = Path(path)
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"cannot read the optimization profiles {path} ({error})") from error
    if unknown := sorted(document.keys() - {"profiles"}):
        raise InputError(f"{path}: unknown key {unknown[0]!r}", allowed="profiles")
    items = document.get("profiles", [])
    if not isinstance(items, list):
        raise InputError(f"{path}: profiles is not a list", got=repr(items), allowed="a [[profiles]] table for each")
    profiles = tuple(_decode_profile(item, f"{path}: profiles[{i}]") for i, item in enumerate(items))
    try:
        check_profiles(profiles)
    except InputError as error:
        raise _at(str(path), error) from error
    return profiles


def profiles_to_toml(profiles: Sequence[OptimizationProfile]) -> str:
    """Profiles as TOML text, to edit and to read with :func:`read_profiles`."""
    return "\n".join(
        f"[[profiles]]\nbatch_size = {_inline(profile.batch_size)}\nsequence_length = {_inline(profile.sequence_length)}\n"
        for profile in profiles
    )


def _size(profile: OptimizationProfile) -> tuple[int, int]:
    return profile.sequence_length.max, profile.batch_size.max


def _inline(sizes: ShapeRange) -> str:
    return f"{{ min = {sizes.min}, opt = {sizes.opt}, max = {sizes.max} }}"


def _decode_profile(item: object, where: str) -> OptimizationProfile:
    try:
        return decode(OptimizationProfile, item, where)
    except DecodeError as error:
        raise InputError(str(error), allowed="batch_size and sequence_length, each { min, opt, max }") from error
    except InputError as error:
        raise _at(where, error) from error


def _at(where: str, error: InputError) -> InputError:
    return InputError(f"{where}: {error.what}", got=error.got, allowed=error.allowed, fix=error.fix)
