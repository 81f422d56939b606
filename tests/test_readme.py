"""What the README shows is what happens."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from crossforge.export.cli import app
from crossforge.runtime.serving.models import ModelSpec, load_models
from crossforge.runtime.serving.settings import ServiceSettings
from support.serving import running

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ADDRESS = "http://localhost:8080"


def test_python_examples_run(
    demo_bundle: Path,
    demo_embedder_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "demo-bundle").symlink_to(demo_bundle)
    (tmp_path / "embedder").symlink_to(demo_embedder_bundle)
    monkeypatch.chdir(tmp_path)
    blocks = [block for block in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL) if ADDRESS not in block]
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert "3.8 million inhabitants" in capsys.readouterr().out.splitlines()[0]


def test_examples_of_the_service_run(demo_bundle: Path) -> None:
    settings = ServiceSettings(port=0)
    blocks = [b for b in re.findall(r"```(sh|python)\n(.*?)```", README, flags=re.DOTALL) if ADDRESS in b[1]]
    assert [language for language, _ in blocks] == ["sh", "python", "python"]
    if shutil.which("curl") is None:
        pytest.skip("no curl")
    models = load_models([ModelSpec(name="demo-bundle", bundle=demo_bundle)], settings)
    with running(models, settings) as service:
        curl, *scripts = [
            subprocess.run(
                ["/bin/sh", "-ec", code] if language == "sh" else [sys.executable, "-c", code],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for language, code in ((language, block.replace(ADDRESS, service.url)) for language, block in blocks)
        ]

    assert [row["index"] for row in json.loads(curl)] == [1, 0]
    assert [script.split()[0] for script in scripts] == ["1", "1"]


def test_commands_exist() -> None:
    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    for group in app.registered_groups:
        assert group.typer_instance is not None
        known |= {c.name or c.callback.__name__ for c in group.typer_instance.registered_commands if c.callback}
    shown = set(re.findall(r"(?:^|`)crossforge (\w+)", README, flags=re.MULTILINE)) | set(
        re.findall(r"`(\w+) BUNDLE`", README)
    )
    assert shown == known


def test_links_lead_somewhere() -> None:
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
            if "://" not in link:
                assert (document.parent / link).exists(), f"{document.name} links to {link}"


def test_the_namespace_has_no_init_file() -> None:
    assert not list(ROOT.glob("*/crossforge/__init__.py"))
