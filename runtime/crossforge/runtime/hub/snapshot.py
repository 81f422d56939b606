"""A commit of a repository in the hub's cache, filled with the files that are wanted and no others.

The layout of the cache is huggingface_hub's: ``models--owner--name/snapshots/COMMIT/`` holds links to ``blobs/``. Nothing
writes into it but huggingface_hub itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from crossforge.profiles import (
    MANIFEST_NAME,
    BundleNotFoundError,
    HubUnavailableError,
    IntegrityError,
    StaleRevisionWarning,
)
from crossforge.runtime.hub.address import HubAddress
from crossforge.runtime.hub.library import import_hub, told_as_ours

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_TIMEOUT_S = 10.0


@dataclass(frozen=True, kw_only=True)
class HubOptions:
    """What may be said of a bundle on the hub beside its name; where a folder is opened, only ``revision`` is refused."""

    revision: str | None = None
    """A branch, a tag or a commit; None takes the address's own, or ``main``."""
    cache_folder: Path | None = None
    """None takes the hub's own (``HF_HOME``, ``HF_HUB_CACHE``)."""
    token: str | bool | None = field(default=None, repr=False)
    """None takes the one of the login or of ``HF_TOKEN``; False sends none."""
    offline: bool = False
    """Use the cache alone, as ``HF_HUB_OFFLINE`` makes every load do."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One commit, of which a part is in the cache."""

    address: HubAddress
    commit: str
    folder: Path
    options: HubOptions

    def fetch(self, names: Iterable[str]) -> None:
        """Have these files in the folder; only those that are not there are downloaded, each whole or not at all.

        Raises:
            IntegrityError: The repository lacks one.
            HubError: The hub does not answer, or refuses.
        """
        missing = [name for name in names if not (self.folder / name).exists()]
        if not missing:
            return
        hub = import_hub(f"Loading {self.address} from the hub")
        repo = self.address.repo
        if self.options.offline or hub.constants.HF_HUB_OFFLINE:
            raise HubUnavailableError(
                f"the hub's cache holds {repo} at {self.commit[:12]} without {missing[0]}, and the hub must not be asked",
                fix="Load it once where there is a network, with the same variant.",
            )
        api = hub.HfApi(token=self.options.token)
        for name in missing:
            with told_as_ours(repo, f"download {name} of {repo}", revision=self.commit):
                _download(api, repo, name, revision=self.commit, options=self.options)

    @property
    def repository_folder(self) -> Path:
        """Where the cache keeps the repository; it may be removed."""
        return self.folder.parent.parent


def find_snapshot(address: HubAddress, options: HubOptions) -> Snapshot:
    """Find the commit that an address means, and have its manifest in the cache.

    A commit that is in the cache is taken without a request. For a branch or a tag the hub is asked, with one request, which
    commit it is at. Where the hub must not be asked, the commit is taken that it was at when it was last asked; where it
    does not answer, too, with a warning.

    Raises:
        BundleNotFoundError: There is no such repository or revision, or it is no bundle.
        HubUnavailableError: The hub does not answer, and the cache has nothing.
        HubError: The hub refuses.
        MissingPackageError: huggingface_hub is not installed.

    Warns:
        StaleRevisionWarning: The hub does not answer, and what it had last is taken.
    """
    hub = import_hub(f"There is no folder {address}: loading it from the hub")
    cached = _find_cached(address, options)
    if cached is not None and (address.is_pinned or options.offline or hub.constants.HF_HUB_OFFLINE):
        return cached
    doing = f"load {address} from the hub"
    if options.offline or hub.constants.HF_HUB_OFFLINE:
        raise HubUnavailableError(
            f"there is no folder {address}, the hub's cache has no bundle of this name, and the hub must not be asked",
            got="HF_HUB_OFFLINE" if hub.constants.HF_HUB_OFFLINE else "offline",
            fix="Load it once where there is a network.",
        )
    try:
        with told_as_ours(address.repo, doing, revision=address.revision, or_folder=True):
            api = hub.HfApi(token=options.token)
            commit = _ask(api, address)
            if cached is not None and cached.commit == commit:
                return cached
            path = _download(api, address.repo, MANIFEST_NAME, revision=address.revision, options=options)
    except IntegrityError as error:
        raise BundleNotFoundError(
            f"{address} on the hub is not a bundle: it has no {MANIFEST_NAME}",
            fix=f"Make one of it: crossforge export {address.repo} BUNDLE",
        ) from error
    except HubUnavailableError as error:
        if cached is None:
            raise
        warnings.warn(
            f"the hub does not answer ({error.got}): {address} is taken from its cache, at the commit that it had when "
            f"the hub was last asked ({cached.commit[:12]})",
            StaleRevisionWarning,
            stacklevel=4,
        )
        return cached
    return _snapshot(address, options, path)


def is_snapshot(folder: Path) -> bool:
    """Whether a folder is the hub's, or lies in one: what is written there would be shared by every program."""
    return any(
        parent.parent.name == "snapshots" and parent.parent.parent.name.startswith("models--")
        for parent in (folder.resolve(), *folder.resolve().parents)
    )


def _find_cached(address: HubAddress, options: HubOptions) -> Snapshot | None:
    from huggingface_hub import try_to_load_from_cache

    with told_as_ours(address.repo, f"load {address} from the hub"):
        path = try_to_load_from_cache(address.repo, MANIFEST_NAME, revision=address.revision, cache_dir=options.cache_folder)
    return _snapshot(address, options, path) if isinstance(path, str) else None


def _snapshot(address: HubAddress, options: HubOptions, manifest: str) -> Snapshot:
    folder = Path(manifest).parent
    return Snapshot(address=address, commit=folder.name, folder=folder, options=options)


def _ask(api: HfApi, address: HubAddress) -> str | None:
    """The commit that a revision is at, by the hub: one request, not repeated when it fails, so that a fallback is quick."""
    return api.model_info(address.repo, revision=address.revision, timeout=_TIMEOUT_S).sha


def _download(api: HfApi, repo: str, name: str, *, revision: str, options: HubOptions) -> str:
    return api.hf_hub_download(repo, name, revision=revision, cache_dir=options.cache_folder)
