"""The container images and Kubernetes manifests of ``examples/deploy``, and what the service reads from their arguments."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import typer
import yaml
from dockerfile_parse import DockerfileParser

from crossforge.export.cli import app

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "examples" / "deploy"
KUBERNETES = DEPLOY / "kubernetes"


def parse_serve(arguments: Sequence[str]) -> dict[str, Any]:
    """What ``crossforge serve`` reads from its arguments, each by its parameter's name; nothing is started.

    Raises:
        click.UsageError: It knows one of them not, or cannot read its value.
    """
    name, *options = arguments
    assert name == "serve"
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    return command.make_context(name, list(options)).params  # type: ignore[no-any-return]


def read_documents(path: Path) -> Iterator[dict[str, Any]]:
    """The documents of a YAML file."""
    yield from yaml.safe_load_all(path.read_text(encoding="utf-8"))


@dataclass(frozen=True, kw_only=True)
class Image:
    """A Dockerfile's instructions, as (name, value), and those of its last stage."""

    instructions: list[tuple[str, str]]
    stage: list[tuple[str, str]]

    @classmethod
    def read(cls, path: Path) -> Image:
        structure: list[dict[str, Any]] = DockerfileParser(fileobj=BytesIO(path.read_bytes())).structure
        found = [(line["instruction"], line["value"]) for line in structure if line["instruction"] != "COMMENT"]
        last = max(index for index, (name, _) in enumerate(found) if name == "FROM")
        return cls(instructions=found, stage=found[last:])

    def values(self, name: str) -> list[str]:
        return [value for instruction, value in self.instructions if instruction == name]

    def last(self, name: str) -> str:
        """What the image does: the last such instruction of the last stage."""
        return [value for instruction, value in self.stage if instruction == name][-1]

    def health_check(self) -> tuple[dict[str, str], list[str]]:
        """Its options, and its command."""
        options, _, command = self.last("HEALTHCHECK").partition("CMD ")
        return dict(re.findall(r"--([\w-]+)=(\w+)", options)), json.loads(command)

    def environment(self) -> dict[str, str]:
        return dict(pair.split("=", 1) for value in self.values("ENV") for pair in shlex.split(value))


IMAGES = {extra: Image.read(DEPLOY / "docker" / f"Dockerfile.{extra}") for extra in ("cpu", "gpu")}
