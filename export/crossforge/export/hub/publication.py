"""What of a bundle is published: a folder of links with a manifest of its own, verified as it will be downloaded."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from crossforge.export.hub.card import CARD_NAME
from crossforge.profiles import ENGINE_FOLDER, MANIFEST_NAME, InputError, IntegrityError, Manifest, Precision
from crossforge.runtime.bundle import Bundle
from crossforge.runtime.engines import read_engines
from crossforge.runtime.progress import Progress
from crossforge.runtime.verification import verify_bundle

_PAPERS = ("LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE", "NOTICE.md", "NOTICE.txt")
"""Files of the user's that go with it, though the manifest does not name them."""
_COMPILED = (".so", ".dll", ".dylib")
_WHY_NOT_ENGINE = "a TensorRT engine is for one kind of GPU and one version of TensorRT: --engines takes it along"


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A file that stays at home."""

    name: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Publication:
    """A bundle as it will be on the hub, but for its card."""

    folder: Path
    manifest: Manifest
    left_out: tuple[LeftOut, ...]

    @property
    def files(self) -> dict[str, int]:
        """Bytes of each file, by name."""
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.stat().st_size for path in paths}


@contextmanager
def prepared(
    bundle: Bundle, *, variants: Sequence[Precision] | None, engines: bool, progress: Progress
) -> Iterator[Publication]:
    """Choose the files, write their manifest, and prove that what is chosen is a sound bundle.

    Args:
        bundle: The bundle; only read.
        variants: Those to publish; None takes all.
        engines: Whether TensorRT engines go too.
        progress: Told of each stage.

    Raises:
        InputError: The bundle has no such variant.
        IntegrityError: A file was altered, or a variant does not reproduce its golden scores here.
    """
    chosen = _choose_variants(bundle.manifest, variants)
    manifest, left_out = _restrict(bundle, chosen, engines=engines)
    with tempfile.TemporaryDirectory(prefix="crossforge-push-") as temporary:
        folder = Path(temporary)
        papers = [name for name in _PAPERS if (bundle.path / name).is_file()]
        for name in dict.fromkeys([*manifest.files, *papers]):
            link = folder / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to((bundle.path / name).resolve())
        (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
        verification = verify_bundle(folder, progress=progress)
        if not verification.passed:
            problems = [
                problem.replace(str(folder), str(bundle.path)).rstrip(".")
                for problem in dict.fromkeys(verification.problems)
            ]
            raise IntegrityError(
                f"{bundle.path} is not pushed: {'; '.join(problems)}",
                fix="Mend it, or leave variants out with --variants; `crossforge verify` checks all of them.",
            )
        yield Publication(folder=folder, manifest=manifest, left_out=left_out)


def _choose_variants(manifest: Manifest, wanted: Sequence[Precision] | None) -> tuple[Precision, ...]:
    chosen = tuple(manifest.variants) if wanted is None else tuple(wanted)
    missing = [precision for precision in chosen if precision not in manifest.variants]
    if missing or not chosen:
        got = ", ".join(missing) or "none"
        raise InputError("the bundle has no such variant", got=got, allowed=", ".join(manifest.variants))
    return chosen


def _restrict(bundle: Bundle, chosen: Sequence[Precision], *, engines: bool) -> tuple[Manifest, tuple[LeftOut, ...]]:
    """The manifest of what goes, and what does not."""
    manifest = bundle.manifest
    variants = {precision: manifest.variants[precision] for precision in manifest.variants if precision in chosen}
    kept = {name for variant in variants.values() for name in variant.files}
    others = {name: p for p, variant in manifest.variants.items() for name in variant.files if name not in kept}
    runnable = set[str]()
    if engines:
        for record in read_engines(bundle):
            if record.spec.precision in variants and record.is_of(manifest):
                runnable |= {record.spec.path, record.spec.record_path}
    left_out = []
    files = {}
    for name, record_ in manifest.files.items():
        path = PurePosixPath(name)
        if name == CARD_NAME:
            continue  # a card may be edited on the hub: no digest holds it
        if name in others:
            left_out.append(LeftOut(name=name, why=f"of the variant {others[name]}"))
        elif path.parts[0] == ENGINE_FOLDER and name not in runnable:
            why = "of a variant that is not published, or of an older one" if engines else _WHY_NOT_ENGINE
            left_out.append(LeftOut(name=name, why=why))
        elif path.suffix in _COMPILED:
            left_out.append(LeftOut(name=name, why="compiled code, for one kind of machine"))
        else:
            files[name] = record_
    known = {*manifest.files, *_PAPERS, MANIFEST_NAME, CARD_NAME}
    strangers = sorted(
        name
        for path in bundle.path.rglob("*")
        if path.is_file() and (name := path.relative_to(bundle.path).as_posix()) not in known
    )
    left_out += [LeftOut(name=name, why="not in the manifest") for name in strangers]
    return dataclasses.replace(manifest, variants=variants, files=files), tuple(left_out)
