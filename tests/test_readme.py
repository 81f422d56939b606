"""What the README shows is what happens."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from crossforge.export.cli import app

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_examples_run(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "demo-bundle").symlink_to(demo_bundle)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert "3.8 million inhabitants" in capsys.readouterr().out.splitlines()[0]


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
