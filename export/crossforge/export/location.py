"""Where a source is: a folder, the demonstration, or a model on the hub, of which the small files are fetched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from crossforge.export.bi_encoder import is_bi_encoder
from crossforge.export.demo import DEMO, DEMO_EMBEDDER, find_demo_base, materialize_demo_model
from crossforge.export.json_files import read_json_if_there
from crossforge.export.options import SourceOptions
from crossforge.profiles import InputError, SourceError
from crossforge.runtime.hub import is_hub_id

ALLOWED_SOURCES = "a model folder, a hub id, or the word demo or demo-embedder"
MODULES = "modules.json"
_FACTS = (MODULES, "config_sentence_transformers.json", "sentence_*_config.json", "*/config.json")
"""What sentence-transformers writes beside a model."""
_BI_ENCODER = ("*.json", "*.txt", "*.model", "*.safetensors")
_HUB_TIMEOUT_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Location:
    """A source that is there."""

    name: str
    """What transformers loads it by: a folder or a hub id."""
    facts: Path | None
    """The folder that holds what sentence-transformers wrote beside the model; None where the hub does not answer."""
    commit: str | None
    """The hub's, where the facts came from it."""
    public_id: str
    """What a manifest calls it: never a path."""

    @property
    def is_bi_encoder(self) -> bool:
        """Whether its modules are those of a bi-encoder. All of such a one is in the folder of facts."""
        return self.facts is not None and is_bi_encoder(read_json_if_there(self.facts / MODULES))


def locate(source: str, options: SourceOptions) -> Location:
    """Find a source; a bi-encoder on the hub is fetched.

    Raises:
        SourceError: There is no such source, or no hub that answers for it.
        InputError: A revision is named of what is not on the hub.
    """
    path = Path(source).expanduser()
    if options.revision is not None and (source in (DEMO, DEMO_EMBEDDER) or path.exists()):
        raise InputError(
            f"a revision is a commit, branch or tag of a model on the hub, and {source} is here", got=options.revision
        )
    if source in (DEMO, DEMO_EMBEDDER):
        folder = materialize_demo_model() if source == DEMO else find_demo_base()
        return Location(name=str(folder), facts=folder, commit=None, public_id=source)
    if path.is_dir():
        if not (path / "config.json").is_file() and not (path / MODULES).is_file():
            raise SourceError(f"the folder {source} holds no model: it has no config.json")
        return Location(name=str(path), facts=path, commit=None, public_id=path.resolve().name)
    if path.exists():
        raise SourceError(f"{source} is a file", allowed=ALLOWED_SOURCES)
    if not is_hub_id(source):
        raise SourceError(f"there is no folder {source}", allowed=ALLOWED_SOURCES)
    _ask_hub(source, options.revision)
    facts = _fetch(source, options.revision, _FACTS)
    location = Location(name=source, facts=facts, commit=facts.name if facts else None, public_id=source)
    if location.is_bi_encoder:
        _fetch(source, location.commit, [*_BI_ENCODER, *(["*.bin"] if options.allow_pickle else [])])
    return location


def _fetch(source: str, revision: str | None, patterns: Sequence[str]) -> Path | None:
    """A snapshot with a model's files of these names; None where none is cached and no hub answers."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(patterns)))
    except LocalEntryNotFoundError:
        return None
    except OSError as error:
        first, *_ = str(error).strip().splitlines() or [type(error).__name__]
        raise SourceError(f"cannot fetch {source} from the hub ({first})") from error


def _ask_hub(source: str, revision: str | None) -> None:
    """Ask the hub once for a model that is not in its cache: loading would ask for half a minute before it gave up."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(try_to_load_from_cache(source, "config.json", revision=revision), str):
        return
    try:
        HfApi().model_info(source, revision=revision, timeout=_HUB_TIMEOUT_S)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        at = f" at revision {revision}" if revision else ""
        raise SourceError(
            f"there is no folder {source}, and the hub has no such model{at} that you may read", allowed=ALLOWED_SOURCES
        ) from error
    except OSError as error:  # no network, offline mode, a timeout, an HTTP error
        raise SourceError(
            f"there is no folder {source}, and no model hub answers",
            got=type(error).__name__,
            allowed=ALLOWED_SOURCES,
            fix="Check the connection, or give a local folder.",
        ) from error
