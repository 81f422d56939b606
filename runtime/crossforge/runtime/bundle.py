"""Opening a bundle: its manifest, and the proof that its files are the ones that were written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from crossforge.profiles import (
    MANIFEST_NAME,
    BundleNotFoundError,
    FileRecord,
    InputError,
    IntegrityError,
    Manifest,
    ManifestError,
    Precision,
)
from crossforge.runtime.hub import HubAddress, HubOptions, Snapshot, find_snapshot, is_snapshot

TOKENIZER_NAME = "tokenizer.json"


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose manifest has been read."""

    path: Path
    manifest: Manifest
    snapshot: Snapshot | None = None
    """Where the hub's cache holds it, if it is one of the hub's: then files may be missing until :meth:`provide`."""

    @classmethod
    def open(cls, path: str | Path | Bundle, hub: HubOptions | None = None) -> Bundle:
        """Read a bundle's manifest; its other files are not touched.

        Args:
            path: The bundle's folder. A string that is no path that exists may also be ``owner/name`` or
                ``owner/name@revision`` on the model hub; of that one the manifest alone is downloaded. An open bundle is
                returned as it is.
            hub: The revision, and how to ask the hub.

        Raises:
            BundleNotFoundError: There is no such folder and no such model on the hub, or it holds no manifest.
            ManifestError: The manifest cannot be acted on.
            InputError: A revision is named of what is no model on the hub.
            HubError: The hub refuses, or does not answer.
            MissingPackageError: huggingface_hub is not installed.

        Warns:
            StaleRevisionWarning: The hub does not answer, and what it had last is opened.
        """
        hub = hub or HubOptions()
        if isinstance(path, Bundle):
            if hub.revision is not None:
                raise InputError("the bundle is open already", got=f"revision {hub.revision}", allowed="None")
            return path
        snapshot = None
        if (address := HubAddress.parse(path)) is not None:
            snapshot = find_snapshot(address.at(hub.revision), hub)
            path = snapshot.folder
        elif hub.revision is not None:
            raise InputError("a folder has no revisions", got=f"{path} and {hub.revision}", allowed="owner/name on the hub")
        return cls(Path(path), _read_manifest(Path(path)), snapshot)

    @classmethod
    def open_whole(cls, path: str | Path | Bundle) -> Bundle:
        """As :meth:`open`, and have every file that the manifest names on disk.

        Raises:
            BundleError: As :meth:`open`, or the repository on the hub lacks a file.
            HubError: The hub refuses, or does not answer.
        """
        bundle = cls.open(path)
        bundle.provide(bundle.manifest.files)
        return bundle

    def provide(self, names: Iterable[str]) -> None:
        """Have files on disk: those that the hub's cache lacks are downloaded, and of a folder nothing is asked.

        Raises:
            IntegrityError: The repository on the hub lacks one.
            HubError: The hub refuses, or does not answer.
        """
        if self.snapshot is not None:
            self.snapshot.fetch(names)

    def refuse_bi_encoder(self, what: str = "a reranker") -> None:
        """Make sure that the bundle holds a cross-encoder.

        Args:
            what: Which is for cross-encoders alone.

        Raises:
            InputError: It holds a bi-encoder.
        """
        if self.manifest.embedding is not None:
            raise InputError(
                f"{self.path} holds a bi-encoder, which embeds texts one by one; {what} reads pairs",
                allowed="the bundle of a cross-encoder",
                fix="Use crossforge.runtime.Embedder.load(), which embeds texts and compares them.",
            )

    def check(self, names: Iterable[str]) -> None:
        """Compare files with what the manifest recorded of them.

        Raises:
            IntegrityError: One is missing, or its size or digest differs.
        """
        for name in names:
            if problem := self.find_damage(name):
                if self.snapshot is not None:
                    cached = self.snapshot.repository_folder
                    fix = f"Remove {cached} to download it again; if that does not help, it was pushed so."
                else:
                    fix = "Copy or export it again; `crossforge verify` lists every file."
                raise IntegrityError(f"the bundle {self.path} is damaged: {problem}", fix=fix)

    def find_damage(self, name: str) -> str | None:
        """What is wrong with one file, in words; None if nothing is."""
        record = self.manifest.files.get(name)
        if record is None:
            return f"{name} is not recorded in the manifest"
        path = self.path / name
        try:
            size_bytes = path.stat().st_size
            if size_bytes != record.size_bytes:
                return f"{name} has {size_bytes:,} bytes, the manifest says {record.size_bytes:,}"
            if sha256_of(path) != record.sha256:
                return f"{name} was altered (its sha256 differs from the manifest's)"
        except FileNotFoundError:
            return f"{name} is missing"
        except (OSError, ValueError) as error:  # ValueError: a name that no file system has
            return f"{name} cannot be read ({error})"
        return None

    def files_to_run(self, precision: Precision) -> tuple[str, ...]:
        """The files that serving a variant reads."""
        return (TOKENIZER_NAME, *self.manifest.variants[precision].files)

    def size_bytes(self, precision: Precision) -> int:
        """Bytes on disk of a variant, external data included."""
        return sum(self.manifest.files[name].size_bytes for name in self.manifest.variants[precision].files)


def refuse_hub(path: str | Path, doing: str) -> None:
    """Make sure that a bundle which is to be changed is a folder of the user's own.

    Args:
        path: The bundle as it was named.
        doing: What would change it, as a sentence's subject.

    Raises:
        InputError: It is a model on the hub, or lies in the hub's cache.
    """
    if (address := HubAddress.parse(str(path))) is not None:
        raise InputError(
            f"{doing} changes a bundle, and there is no folder {path}",
            allowed="a folder",
            fix=f"If it is on the hub, copy it first: hf download {address.repo} --local-dir FOLDER",
        )
    if is_snapshot(Path(path)):
        raise InputError(
            f"{doing} would write into the hub's cache, which other programs read",
            got=path,
            allowed="a folder of your own",
            fix="Copy the bundle first: cp -rL",
        )


def sha256_of(path: Path) -> str:
    """The hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record_file(path: Path) -> FileRecord:
    """What the manifest notes of a file."""
    return FileRecord(sha256=sha256_of(path), size_bytes=path.stat().st_size)


def _read_manifest(path: Path) -> Manifest:
    export_one = f"Make one: crossforge export SOURCE {path}"
    if not _is_dir(path):
        if os.path.isfile(path):  # noqa: PTH113 (which never raises)
            raise BundleNotFoundError(f"{path} is a file, and a bundle is a folder", fix="Name the folder.")
        raise BundleNotFoundError(f"there is no bundle at {path}", fix=export_one)
    manifest_path = path / MANIFEST_NAME
    try:
        text = manifest_path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise BundleNotFoundError(f"{path} is not a bundle: it has no {MANIFEST_NAME}", fix=export_one) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"cannot read {manifest_path} ({error})", fix="Export the bundle again.") from error
    manifest = Manifest.from_json(text, where=str(manifest_path))
    if outside := [name for name in manifest.files if not _stays_inside(name)]:
        raise ManifestError(f"{manifest_path} names a file outside the bundle", got=repr(outside[0]))
    return manifest


def _is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name that no file system has
        return False


def _stays_inside(name: str) -> bool:
    path = Path(name)
    return not path.is_absolute() and ".." not in path.parts
