"""Options that several commands have, each defined once: the same words and the same meaning in every help text."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from crossforge.profiles import Activation, DeploymentProfile, InputError

RUN_FORMAT = 'JSON lines of {"qid", "query", "passages": [{"id", "text"}]}'
"""What a run is, for help texts."""

# A help text is Rich's markup, where a word in brackets that begins with @ would vanish.
BundleArgument = Annotated[str, typer.Argument(help=r"The bundle's folder, or OWNER/NAME\[@REVISION] on the model hub.")]
TargetArgument = Annotated[Path, typer.Argument(help="The folder to write; a bundle there is replaced.")]

ProviderOption = Annotated[str, typer.Option(help="auto, tensorrt, cuda, native, cpu or openvino.")]
PrecisionOption = Annotated[str, typer.Option(help="auto, or a variant of the bundle.")]
StrictOption = Annotated[bool, typer.Option("--strict", help="Fail instead of running on another provider.")]
_DEPLOYMENT = typer.Option("--deployment", help="A deployment profile (TOML), as tune writes it.")
DeploymentOption = Annotated[Path | None, _DEPLOYMENT]
RequiredDeploymentOption = Annotated[Path, _DEPLOYMENT]

ActivationOption = Annotated[
    Activation | None, typer.Option(help="Apply this to the logits.", show_default="none: raw relevance")
]

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, and nothing else there.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def read_deployment(path: Path | None) -> DeploymentProfile | None:
    """The deployment profile that a command was given, if it was given one."""
    return None if path is None else DeploymentProfile.from_toml(path)


def bytes_of(megabytes: float, option: str) -> int:
    """What an option's megabytes are in bytes.

    Raises:
        InputError: They are no size.
    """
    if not (math.isfinite(megabytes) and megabytes > 0):
        raise InputError(f"{option} is no size", got=megabytes, allowed="megabytes, more than 0")
    return int(megabytes * 1e6)
