"""huggingface_hub at the seam: imported where it is used, and its errors told as ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from crossforge.profiles import (
    BundleNotFoundError,
    CrossforgeError,
    HubAccessError,
    HubError,
    HubUnavailableError,
    InputError,
    IntegrityError,
    MissingPackageError,
)
from crossforge.profiles.telemetry import switch_off_telemetry

_LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN."
_TOO_MANY_REQUESTS = 429


def import_hub(purpose: str) -> ModuleType:
    """huggingface_hub, which reads ``HF_ENDPOINT``, ``HF_HOME`` and ``HF_HUB_OFFLINE`` when it is imported first.

    Raises:
        MissingPackageError: It is not installed.
    """
    switch_off_telemetry()
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ModuleNotFoundError as error:
        raise MissingPackageError("huggingface_hub", extra="hub", purpose=purpose) from error
    return huggingface_hub


@contextmanager
def told_as_ours(repo: str, doing: str, *, revision: str | None = None, or_folder: bool = False) -> Iterator[None]:
    """Map what huggingface_hub raises.

    Args:
        repo: The repository that was asked for.
        doing: What was tried, as in ``load org/name``.
        revision: What of it was wanted.
        or_folder: Whether the name might have meant a folder, which is then said to be missing too.

    Raises:
        BundleNotFoundError: There is no such repository or revision, or it has no such file.
        HubAccessError: It is gated, or a token is missing or may not.
        HubUnavailableError: The hub did not answer, or with a fault of its own.
        HubError: It refused for another reason.
        InputError: The name is none that the hub knows.
    """
    try:
        yield
    except CrossforgeError:
        raise
    except Exception as error:
        ours = explain(error, repo, doing, revision=revision, or_folder=or_folder)
        if ours is None:
            raise
        raise ours from error


def explain(
    error: Exception, repo: str, doing: str, *, revision: str | None = None, or_folder: bool = False
) -> CrossforgeError | None:
    """Our error for one of huggingface_hub's, or of the HTTP library below it; None if it is neither."""
    from huggingface_hub import errors

    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):  # the failure of one file of an upload
        return explain(error.__cause__, repo, f"{doing} ({first_line(error)})", revision=revision)
    no_folder = f"there is no folder {repo}, and " if or_folder else ""
    failed = no_folder or f"cannot {doing}: "
    status = getattr(getattr(error, "response", None), "status_code", None)
    got = f"HTTP {status}" if status else first_line(error)
    if isinstance(error, errors.GatedRepoError):
        return HubAccessError(
            f"cannot {doing}: its owner gives access on request",
            got=got,
            fix=f"Ask for it on the model's page, then log in. {_LOG_IN}",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return BundleNotFoundError(
            f"{no_folder}the hub has no model {repo} that you may read",
            got=got,
            fix=f"Check the name. If it is private: {_LOG_IN}",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return BundleNotFoundError(
            f"{repo} has no such revision", got=revision, allowed="one of its branches, tags or commits"
        )
    if isinstance(error, errors.HFValidationError):
        return InputError(f"cannot {doing}: the hub takes no such name", got=first_line(error), allowed="owner/name")
    if status in (401, 403):
        why = "no token is set, or it is not valid" if status == 401 else "the token that is set does not allow it"
        return HubAccessError(f"cannot {doing}: {why}", got=got, fix=_LOG_IN)
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return IntegrityError(f"cannot {doing}: the repository lacks a file", got=first_line(error))
    if status is not None and status != _TOO_MANY_REQUESTS and status < 500:
        return HubError(f"cannot {doing}: the hub refused", got=f"{got}, {first_line(error)}")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return HubUnavailableError(
            f"{failed}the hub must not be asked",
            got="HF_HUB_OFFLINE",
            fix="Unset it, or do it once where there is a network.",
        )
    if isinstance(error, OSError) and error.filename is not None:
        return HubError(f"cannot {doing}: the hub's cache cannot be used", got=first_line(error))
    if status is not None or isinstance(error, OSError) or type(error).__module__.startswith("httpx"):
        return HubUnavailableError(
            f"{failed}the hub does not answer",
            got=f"HTTP {status}" if status else type(error).__name__,
            fix="Check the connection, or give a local folder.",
        )
    return None


def first_line(error: BaseException) -> str:
    """An error's first line, which says what is wrong; those of huggingface_hub go on for several."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
