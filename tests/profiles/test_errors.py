from __future__ import annotations

import inspect

import pytest

from crossforge import profiles
from crossforge.profiles import (
    BundleError,
    BundleNotFoundError,
    ClosedError,
    CrossforgeError,
    CrossforgeWarning,
    DeadlineError,
    EngineError,
    GateError,
    InputError,
    IntegrityError,
    MachineError,
    ManifestError,
    MissingPackageError,
    NonFiniteLogitsError,
    OverloadedError,
    ProviderUnavailableError,
    RequestTooLargeError,
    SchemaVersionError,
    SourceError,
    errors,
)

CLASSES = [member for _, member in inspect.getmembers(errors, inspect.isclass)]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "it broke"),
        ({"got": 3}, "it broke; got 3"),
        ({"got": 0}, "it broke; got 0"),
        ({"allowed": "1 or more"}, "it broke; allowed: 1 or more"),
        ({"fix": "Mend it."}, "it broke. Mend it."),
        ({"got": 3, "allowed": 4, "fix": "Mend it."}, "it broke; got 3; allowed: 4. Mend it."),
    ],
)
def test_a_message_says_what_was_got_what_is_allowed_and_what_to_do(parts: dict[str, str], message: str) -> None:
    assert str(CrossforgeError("it broke", **parts)) == message


def test_an_error_keeps_its_parts() -> None:
    error = InputError("it broke", got=3, allowed=4, fix="Mend it.")

    assert (error.what, error.got, error.allowed, error.fix) == ("it broke", 3, 4, "Mend it.")


@pytest.mark.parametrize(
    ("kind", "exit_code"),
    [
        (InputError, 2),
        (RequestTooLargeError, 2),
        (SourceError, 2),
        (BundleError, 2),
        (BundleNotFoundError, 2),
        (IntegrityError, 2),
        (ManifestError, 2),
        (SchemaVersionError, 2),
        (EngineError, 1),
        (ClosedError, 1),
        (NonFiniteLogitsError, 1),
        (OverloadedError, 1),
        (DeadlineError, 1),
        (GateError, 1),
        (MachineError, 3),
        (ProviderUnavailableError, 3),
    ],
)
def test_every_error_has_its_exit_status(kind: type[CrossforgeError], exit_code: int) -> None:
    assert kind("it broke").exit_code == exit_code


def test_a_missing_package_answers_with_its_install_line() -> None:
    error = MissingPackageError("onnxruntime", extra="cpu", purpose="Running a bundle")

    assert error.exit_code == 3
    assert str(error) == (
        'Running a bundle needs the package onnxruntime, which is not installed. Run: pip install "crossforge[cpu]"'
    )


def test_a_missing_package_that_no_extra_brings_is_named_itself() -> None:
    assert str(MissingPackageError("torch", extra=None, purpose="Returning tensors")) == (
        "Returning tensors needs the package torch, which is not installed. Run: pip install torch"
    )


def test_the_docstring_draws_the_whole_tree() -> None:
    drawn: dict[str, str | None] = {}
    ancestors: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        name = next((word for word in line.split() if word.endswith(("Error", "Warning"))), None)
        if name is None or not line.startswith("    "):
            continue
        depth = (line.index(name) - 4) // 4
        ancestors = [*ancestors[:depth], name]
        drawn[name] = ancestors[-2] if depth else None
    declared = {kind.__name__: kind.__base__.__name__ for kind in CLASSES if kind.__base__ is not None}

    assert drawn == {**declared, "CrossforgeError": None, "CrossforgeWarning": None}


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_and_warning_can_be_imported_from_profiles(kind: type) -> None:
    assert getattr(profiles, kind.__name__) is kind
    assert issubclass(kind, CrossforgeError | CrossforgeWarning)
