"""A verified bundle onto the model hub, with its card, in one commit."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossforge.export.hub.card import CARD_NAME, SourceFacts, base_model, is_generated, make_card
from crossforge.export.hub.publication import LeftOut, Publication, prepared
from crossforge.profiles import BundleNotFoundError, HubError, HubUnavailableError, InputError, Manifest, Precision
from crossforge.runtime.bundle import Bundle
from crossforge.runtime.hub import is_hub_id
from crossforge.runtime.hub.library import import_hub, told_as_ours
from crossforge.runtime.progress import Progress, Silent

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ModelInfo


class CardOrigin(StrEnum):
    """Where the card comes from."""

    GENERATED = "generated"
    BUNDLE = "bundle"
    """The bundle's own README.md, which is the user's."""
    KEPT = "kept"
    """The repository's, which somebody wrote or changed: it stays."""


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """How a bundle is published."""

    private: bool = False
    """Make the repository a private one, if there is none."""
    branch: str | None = None
    """Instead of the main one; made if there is none."""
    create_pr: bool = False
    """Open a pull request instead of changing the branch."""
    message: str | None = None
    """Of the commit."""
    variants: tuple[Precision, ...] | None = None
    """None publishes all."""
    engines: bool = False
    """Whether TensorRT engines go too."""
    replace_card: bool = False
    """Replace a README.md of the repository that somebody wrote or changed."""
    dry_run: bool = False
    """Verify and plan, and change nothing."""


@dataclass(frozen=True, kw_only=True)
class Push:
    """What went to the hub, or, after a dry run, what would go."""

    repo: str
    files: dict[str, int]
    """Bytes of each file, by name."""
    left_out: tuple[LeftOut, ...]
    card: str
    card_origin: CardOrigin
    notes: tuple[str, ...]
    """What could not be found out, and so is not in the card."""
    url: str | None = None
    """The commit's; None after a dry run."""
    commit: str | None = None
    pull_request: str | None = None

    @property
    def size_bytes(self) -> int:
        """Of all files; the hub takes only what it does not have yet."""
        return sum(self.files.values())


def push_bundle(
    bundle: str | Path, repo: str, options: PushOptions | None = None, *, progress: Progress | None = None
) -> Push:
    """Publish a bundle.

    What is published is verified first: every file's digest, every variant's golden scores on this machine.

    Args:
        bundle: The bundle; only read.
        repo: ``owner/name`` on the hub; made if there is none.
        options: What goes, and where.
        progress: Told of each stage.

    Raises:
        InputError: ``repo`` is no name, or the bundle has no such variant.
        BundleError: The bundle is missing or damaged, or does not score what it did.
        HubError: The hub refuses, or does not answer.
        MissingPackageError: huggingface_hub is not installed.
    """
    options, progress = options or PushOptions(), progress or Silent()
    if not is_hub_id(repo) or "/" not in repo:
        raise InputError("a repository on the hub is not named so", got=repr(repo), allowed="owner/name")
    api: HfApi = import_hub("Pushing to the hub").HfApi()
    opened = Bundle.open(bundle)
    opened.provide(opened.manifest.files)
    with prepared(opened, variants=options.variants, engines=options.engines, progress=progress) as publication:
        notes: list[str] = []
        with progress.stage("ask the hub") as stage:
            there = _look(api, repo, options, notes)
            facts = _find_facts(api, publication.manifest, notes)
            card, origin = _choose_card(api, opened, publication, repo, facts, options, there)
            stage.note = f"{repo} is there" if there else f"no {repo} yet"
        files = publication.files
        if origin is not CardOrigin.KEPT:
            (publication.folder / CARD_NAME).write_text(card, encoding="utf-8")
            files = publication.files
        push = Push(
            repo=repo,
            files=files,
            left_out=publication.left_out,
            card=card,
            card_origin=origin,
            notes=tuple(notes),
        )
        if options.dry_run:
            return push
        with progress.stage(f"push to {repo}") as stage:
            done = _commit(api, publication, push, options, there)
            stage.note = f"{len(files)} files, {push.size_bytes / 1e6:.1f} MB"
    return done


def _look(api: HfApi, repo: str, options: PushOptions, notes: list[str]) -> ModelInfo | None:
    """The repository at the branch that is to change; None if there is none.

    Raises:
        InputError: It is public, and a private one was asked for.
        HubError: The hub refuses, or does not answer and this is no dry run.
    """
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        with told_as_ours(repo, f"push to {repo}"):
            try:
                try:
                    info = api.model_info(repo, revision=options.branch)
                except RevisionNotFoundError:  # a branch that is to be made
                    info = api.model_info(repo)
            except GatedRepoError:
                raise
            except RepositoryNotFoundError:
                return None
    except HubUnavailableError as error:
        if not options.dry_run:
            raise
        notes.append(f"{error.what}: whether the repository is there, and has a README.md, is not known")
        return None
    if options.private and not info.private:
        raise InputError(
            f"{repo} is on the hub already, and everybody may read it",
            got="--private",
            fix="Make it private on its settings page first, or push to another name.",
        )
    return info


def _find_facts(api: HfApi, manifest: Manifest, notes: list[str]) -> SourceFacts:
    """Licence and languages of the model that the bundle was made of, as its own card has them."""
    source = base_model(manifest.source)
    if source is None:
        notes.append(f"{manifest.source.id} is no model on the hub: the card names no base_model, license or language")
        return SourceFacts()
    try:
        with told_as_ours(source, f"ask for the card of {source}"):
            info = api.model_info(source, revision=manifest.source.revision)
    except (HubError, BundleNotFoundError) as error:
        notes.append(f"{error.what}: the card names no license and no language")
        return SourceFacts()
    data: dict[str, Any] = vars(info.card_data) if info.card_data else {}
    language = data.get("language") or ()
    facts = SourceFacts(
        license=data.get("license"),
        license_name=data.get("license_name"),
        license_link=data.get("license_link"),
        language=(language,) if isinstance(language, str) else tuple(language),
    )
    for name, value in (("license", facts.license), ("language", facts.language)):
        if not value:
            notes.append(f"the card of {source} names no {name}, so neither does this one")
    return facts


def _choose_card(
    api: HfApi,
    bundle: Bundle,
    publication: Publication,
    repo: str,
    facts: SourceFacts,
    options: PushOptions,
    there: ModelInfo | None,
) -> tuple[str, CardOrigin]:
    own = _read_text(bundle.path / CARD_NAME)
    if own is None or is_generated(own):
        branch = None if options.create_pr else options.branch
        card, origin = make_card(publication.manifest, repo, facts, revision=branch), CardOrigin.GENERATED
    else:
        card, origin = own, CardOrigin.BUNDLE
    if there is None or options.replace_card:
        return card, origin
    theirs = _read_card(api, repo, there)
    if theirs is None or is_generated(theirs) or theirs == card:
        return card, origin
    return theirs, CardOrigin.KEPT


def _read_card(api: HfApi, repo: str, there: ModelInfo) -> str | None:
    if CARD_NAME not in {file.rfilename for file in there.siblings or ()}:
        return None
    with tempfile.TemporaryDirectory() as cache, told_as_ours(repo, f"read the card of {repo}"):
        return _read_text(Path(api.hf_hub_download(repo, CARD_NAME, revision=there.sha, cache_dir=cache)))


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path} ({error})") from error


def _commit(api: HfApi, publication: Publication, push: Push, options: PushOptions, there: ModelInfo | None) -> Push:
    from huggingface_hub import CommitOperationAdd

    message = options.message or f"crossforge bundle: {', '.join(publication.manifest.variants)}"
    with told_as_ours(push.repo, f"push to {push.repo}"):
        if there is None:
            api.create_repo(push.repo, private=options.private, exist_ok=True)
        if options.branch is not None and not options.create_pr:
            api.create_branch(push.repo, branch=options.branch, exist_ok=True)
        commit = api.create_commit(
            push.repo,
            [CommitOperationAdd(name, str((publication.folder / name).resolve())) for name in push.files],
            commit_message=message,
            revision=options.branch,
            create_pr=options.create_pr,
        )
    return Push(
        repo=push.repo,
        files=push.files,
        left_out=push.left_out,
        card=push.card,
        card_origin=push.card_origin,
        notes=push.notes,
        url=str(commit.commit_url),
        commit=commit.oid,
        pull_request=commit.pr_url,
    )
