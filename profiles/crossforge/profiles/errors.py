"""Every error that crossforge raises on purpose.

::

    CrossforgeError
    ├── InputError                     a query, passage, pair or file that cannot be used
    │   └── RequestTooLargeError       larger than the whole queue
    ├── SourceError                    a checkpoint that cannot be exported
    ├── BundleError                    a folder that cannot be served
    │   ├── BundleNotFoundError
    │   ├── IntegrityError             a file is missing, or is not the one that was written
    │   └── ManifestError
    │       └── SchemaVersionError     written by a newer crossforge
    ├── EngineError                    the inference engine failed, or answered nonsense
    │   ├── DeviceMemoryError          the GPU's memory is full
    │   ├── DeviceLostError            the GPU answers no more; only a new process may get it back
    │   ├── NonFiniteLogitsError
    │   └── ClosedError                what was asked has been closed
    ├── OverloadedError                the queue is full; the request was not taken
    ├── DeadlineError                  the request's deadline passed before it was computed
    ├── ServiceError                   a service that was asked over HTTP gave no ranking
    ├── HubError                       the model hub refused what was asked
    │   ├── HubAccessError             a repository is gated, or a token is missing or does not allow it
    │   └── HubUnavailableError        no network, offline mode, or a fault of the hub's own
    ├── GateError                      the work was done and the verdict is no
    └── MachineError                   this machine cannot
        ├── MissingPackageError
        └── ProviderUnavailableError

    CrossforgeWarning
    ├── ProviderFallbackWarning        another execution provider runs than the one that was wanted
    ├── StaleRevisionWarning           the hub does not answer: what the cache has may be an older revision
    ├── TruncationWarning              text was cut, and the return value has no place to say so
    └── UnknownTokensWarning           most of a text is nothing that the model has a token for

A message has four parts: what happened, what was got, what is allowed, what to do.
"""

from __future__ import annotations


class CrossforgeError(Exception):
    """Root of the tree.

    Args:
        what: What happened, as a sentence without its full stop.
        got: What was received.
        allowed: What would have been accepted.
        fix: What to do about it, as a sentence.
    """

    exit_code: int = 2
    """Exit status of a command that ends with this error (0 done, 1 verdict no, 2 bad input, 3 machine)."""

    def __init__(
        self,
        what: str,
        *,
        got: object | None = None,
        allowed: object | None = None,
        fix: str | None = None,
    ) -> None:
        self.what = what
        self.got = got
        self.allowed = allowed
        self.fix = fix
        parts = [what]
        if got is not None:
            parts.append(f"got {got}")
        if allowed is not None:
            parts.append(f"allowed: {allowed}")
        message = "; ".join(parts)
        super().__init__(f"{message}. {fix}" if fix else message)


class InputError(CrossforgeError):
    """A query, a passage, a pair, an option or a file's content cannot be used."""


class RequestTooLargeError(InputError):
    """A request has more tokens than the whole queue may hold."""


class SourceError(CrossforgeError):
    """The checkpoint is not a cross-encoder that can be exported."""


class BundleError(CrossforgeError):
    """The bundle cannot be served."""


class BundleNotFoundError(BundleError):
    """There is no bundle at the given path."""


class IntegrityError(BundleError):
    """A file of the bundle is missing, or differs from what the manifest recorded."""


class ManifestError(BundleError):
    """``crossforge.json`` is not a manifest that this version can act on."""


class SchemaVersionError(ManifestError):
    """The manifest was written by a newer crossforge."""


class EngineError(CrossforgeError):
    """The inference engine failed while loading or running a model."""

    exit_code = 1


class DeviceMemoryError(EngineError):
    """The GPU has no memory left for what was asked."""


class DeviceLostError(EngineError):
    """The GPU fell into an error that this process cannot get out of."""


class NonFiniteLogitsError(EngineError):
    """The model answered NaN or infinity."""


class ClosedError(EngineError):
    """The queue or the reranker was closed, and takes no more requests."""


class OverloadedError(CrossforgeError):
    """The queue has no room for a request, which was not taken.

    Args:
        what: As for every error, and so are ``got``, ``allowed`` and ``fix``.
        wait_s: Seconds in which the work that is queued now will be done, at the speed measured so far; None where
            nothing was measured yet.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        wait_s: float | None = None,
        got: object | None = None,
        allowed: object | None = None,
        fix: str | None = None,
    ) -> None:
        self.wait_s = wait_s
        super().__init__(what, got=got, allowed=allowed, fix=fix)


class DeadlineError(CrossforgeError):
    """The deadline of a request passed before all of it was computed."""

    exit_code = 1


class ServiceError(CrossforgeError):
    """A service that was asked over HTTP answered otherwise than a reranker does, or not at all.

    Args:
        what: As for every error, and so are ``got``, ``allowed`` and ``fix``.
        kind: In a word or two, to count failures by: such as ``HTTP 500``.
    """

    def __init__(
        self,
        what: str,
        *,
        kind: str,
        got: object | None = None,
        allowed: object | None = None,
        fix: str | None = None,
    ) -> None:
        self.kind = kind
        super().__init__(what, got=got, allowed=allowed, fix=fix)


class HubError(CrossforgeError):
    """The model hub refused what was asked."""

    exit_code = 3


class HubAccessError(HubError):
    """A repository is gated, or a token is missing or does not allow what was asked."""


class HubUnavailableError(HubError):
    """The model hub did not answer, answered with a fault of its own, or must not be asked."""


class GateError(CrossforgeError):
    """A check ran to its end and the answer is no."""

    exit_code = 1


class MachineError(CrossforgeError):
    """This machine lacks something that the request needs."""

    exit_code = 3


class MissingPackageError(MachineError):
    """An optional package is not installed.

    Args:
        package: The distribution that could not be imported.
        extra: The crossforge extra that brings it; None where it is of use to a caller who has it anyway.
        purpose: What it was needed for.
    """

    def __init__(self, package: str, *, extra: str | None, purpose: str) -> None:
        self.package = package
        self.extra = extra
        super().__init__(
            f"{purpose} needs the package {package}, which is not installed",
            fix=f"Run: pip install {package}" if extra is None else f'Run: pip install "crossforge[{extra}]"',
        )


class ProviderUnavailableError(MachineError):
    """The wanted execution provider cannot run here."""


class CrossforgeWarning(UserWarning):
    """Root of the warnings."""


class ProviderFallbackWarning(CrossforgeWarning):
    """Another execution provider runs than the one that was wanted."""


class StaleRevisionWarning(CrossforgeWarning):
    """The model hub does not answer, and what its cache has may be an older revision."""


class TruncationWarning(CrossforgeWarning):
    """Text was cut to fit the model."""


class UnknownTokensWarning(CrossforgeWarning):
    """Most of a text is in a script or notation that the model has no token for: its score means little."""
