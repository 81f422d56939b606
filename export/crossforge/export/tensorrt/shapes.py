"""The shapes that a bundle's engines are built for: read from a file, or chosen for a workload."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from crossforge.profiles import (
    DEFAULT_MAX_PROFILES,
    DEFAULT_WORKLOAD,
    InputError,
    OptimizationProfile,
    check_profiles,
    explain_profiles,
    profiles_from_lengths,
    read_profiles,
)
from crossforge.runtime.bundle import Bundle
from crossforge.runtime.prompts import open_tokenizer
from crossforge.runtime.records import read_run
from crossforge.runtime.scoring import GPU_BUDGET_TOKENS
from crossforge.runtime.workload import workload_from_records


@dataclass(frozen=True, kw_only=True)
class ShapeOptions:
    """Where optimization profiles come from. By default they are chosen for the built-in workload."""

    workload: Path | None = None
    """A run whose pairs are typical."""
    profiles: Path | None = None
    """Profiles in TOML, taken as they are."""
    max_profiles: int | None = None
    max_tokens: int | None = None
    """Largest ``batch x sequence`` that memory is reserved for."""

    def __post_init__(self) -> None:
        choosing = (self.workload, self.max_profiles, self.max_tokens)
        if self.profiles is not None and any(value is not None for value in choosing):
            raise InputError(
                "profiles from a file are taken as they are",
                allowed="either --profiles, or --workload, --max-profiles and --max-tokens to choose them",
            )


@dataclass(frozen=True, kw_only=True)
class ShapeChoice:
    """Optimization profiles, and why these."""

    profiles: tuple[OptimizationProfile, ...]
    """In ascending order, which is how engines number them."""
    reasons: tuple[str, ...]
    """Sentences for people."""


def choose_shapes(bundle: Bundle, options: ShapeOptions) -> ShapeChoice:
    """Read or choose the profiles.

    Raises:
        InputError: A file cannot be used, a limit is below 1, or the profiles leave out a length that the bundle's tokenizer
            lets through.
    """
    max_length = bundle.manifest.truncation.max_length
    if options.profiles is not None:
        given = read_profiles(options.profiles)
        check_profiles(given, max_length=max_length)
        ascending = sorted(given, key=lambda profile: (profile.sequence_length.max, profile.batch_size.max))
        return ShapeChoice(profiles=tuple(ascending), reasons=(f"Profiles as {options.profiles} gives them.",))
    workload, what = DEFAULT_WORKLOAD, "the built-in workload; --workload FILE takes your own"
    if options.workload is not None:
        bundle.refuse_bi_encoder("--workload")
        manifest = bundle.manifest
        tokenizer = open_tokenizer(bundle.path, manifest)
        workload, what = workload_from_records(read_run(options.workload), tokenizer), str(options.workload)
    profiles = profiles_from_lengths(
        workload,
        max_length=max_length,
        max_tokens=GPU_BUDGET_TOKENS if options.max_tokens is None else options.max_tokens,
        max_profiles=DEFAULT_MAX_PROFILES if options.max_profiles is None else options.max_profiles,
    )
    return ShapeChoice(profiles=profiles, reasons=(f"Profiles for {what}:", *explain_profiles(workload, profiles)))
