"""A bundle as a model of NVIDIA Triton Inference Server, for its Python backend."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from crossforge.export.bundle import staged_folder
from crossforge.profiles import MANIFEST_NAME, ExecutionProvider, InputError, Manifest
from crossforge.runtime.bundle import Bundle
from crossforge.runtime.precision import AUTO

MAX_BATCH_SIZE = 64
"""Rows (queries with their passages) that Triton may merge; also the most rows of one request."""
_VERSION = "1"
_BUNDLE = "bundle"


@dataclass(frozen=True, kw_only=True)
class TritonOptions:
    """What goes into ``config.pbtxt``."""

    name: str = "reranker"
    """The model's name, and its folder's."""
    instances: int = 1
    """Processes that hold the model, each with its own weights."""
    precision: str = AUTO
    """``auto``, or a variant of the bundle."""
    provider: str = AUTO
    """``auto``, or an execution provider, without which the server refuses to load the model."""
    workers: int | None = None
    """Batches that an instance runs at the same time on the CPU; None takes one a core."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", self.name):
            raise InputError("a model cannot be named so", got=repr(self.name), allowed="letters, digits, _, - and .")
        for name, value in (("instances", self.instances), ("workers", self.workers)):
            if value is not None and value < 1:
                raise InputError(f"{name} is too small", got=value, allowed="1 or more")
        providers = (AUTO, *ExecutionProvider)
        if self.provider not in providers:
            raise InputError("unknown provider", got=repr(self.provider), allowed=", ".join(providers))


def write_model_repository(
    bundle: str | Path, repository: str | Path, options: TritonOptions | None = None, *, force: bool = False
) -> Path:
    """Write ``REPOSITORY/<name>`` with ``config.pbtxt``, ``1/model.py`` and a copy of the bundle at ``1/bundle``.

    The bundle is copied, not referenced: a model repository travels as a whole into an image, a volume or an object
    store, and a version that a server has loaded must not change under it.

    Args:
        bundle: The bundle's folder.
        repository: The model repository; may hold other models, may not exist yet.
        options: What the configuration says.
        force: Replace a model of that name that this function wrote earlier.

    Returns:
        The model's folder.

    Raises:
        BundleError: The bundle is missing or damaged.
        InputError: The bundle has no label that ranks, or no such variant; or something stands at the model's folder.
    """
    options = options or TritonOptions()
    opened, target = Bundle.open_whole(bundle), Path(repository) / options.name
    opened.refuse_bi_encoder("the model for Triton")
    _check_precision(opened.manifest, options.precision)
    if opened.manifest.scoring.ranking_label is None:
        raise InputError(
            "this model classifies pairs and has no label that ranks",
            got=", ".join(opened.manifest.scoring.labels),
            fix="Export it again with --ranking-label.",
        )
    if target.resolve().is_relative_to(opened.path.resolve()):
        raise InputError("the model repository lies inside the bundle", got=str(repository), allowed="a folder outside it")
    opened.check(opened.manifest.files)

    def refuse(folder: Path) -> None:
        _refuse(folder, force=force)

    with staged_folder(target, refuse) as folder:
        (folder / "config.pbtxt").write_text(model_config(options), encoding="utf-8")
        version = folder / _VERSION
        shutil.copytree(opened.path, version / _BUNDLE)
        (version / "model.py").write_text(model_source(), encoding="utf-8")
    return target


def model_config(options: TritonOptions) -> str:
    """The text of ``config.pbtxt``."""
    parameters = {"precision": options.precision, "provider": options.provider}
    if options.workers is not None:
        parameters["workers"] = str(options.workers)
    entries = ",\n".join(f'  {{ key: "{key}" value {{ string_value: "{value}" }} }}' for key, value in parameters.items())
    return f"""\
name: "{options.name}"
backend: "python"

# A row is one query and its passages, so a request has QUERY [rows, 1] and PASSAGE [rows, passages], and gets SCORE
# [rows, passages]. Pairs of different queries are rows of one passage.
max_batch_size: {MAX_BATCH_SIZE}
input [
  {{ name: "QUERY" data_type: TYPE_STRING dims: [ 1 ] }},
  # Ragged: requests with different numbers of passages are merged too. model.py cuts batches by tokens, whatever the rows.
  {{ name: "PASSAGE" data_type: TYPE_STRING dims: [ -1 ] allow_ragged_batch: true }}
]
output [
  {{ name: "SCORE" data_type: TYPE_FP32 dims: [ -1 ] }},
  {{ name: "TRUNCATED" data_type: TYPE_BOOL dims: [ -1 ] }}
]

# No delay: what came in while an instance was busy is merged, and nothing waits for company.
dynamic_batching {{ }}
instance_group [ {{ count: {options.instances} {_instance_kind(options.provider)} }} ]
parameters [
{entries}
]
"""


def model_source() -> str:
    """The text of ``model.py``."""
    return resources.files("crossforge.export").joinpath("triton_model.py").read_text(encoding="utf-8")


def _instance_kind(provider: str) -> str:
    """Where instances live. ``KIND_MODEL`` leaves it to the model, which looks at the machine when it loads."""
    if provider == AUTO:
        return "kind: KIND_MODEL"
    return "kind: KIND_CPU" if ExecutionProvider(provider).is_cpu else "kind: KIND_GPU gpus: [ 0 ]"


def _check_precision(manifest: Manifest, precision: str) -> None:
    allowed = (AUTO, *manifest.variants)
    if precision not in allowed:
        raise InputError("the bundle has no such variant", got=repr(precision), allowed=", ".join(allowed))


def _refuse(folder: Path, *, force: bool) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / _VERSION / _BUNDLE / MANIFEST_NAME).is_file():
        raise InputError(
            f"{folder} exists and is not a model that crossforge wrote", fix="Give the model another name with --name."
        )
    if not force:
        raise InputError(f"{folder} exists", fix="Replace it with --force, or give the model another name with --name.")
