"""What the README shows is what happens."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from crossforge.export.cli import app
from crossforge.export.pairs import digest_pairs, verification_pairs
from crossforge.profiles import Precision
from crossforge.runtime.serving.models import ModelSpec, load_models
from crossforge.runtime.serving.settings import ServiceSettings
from support.builders import make_parity, write_bundle
from support.serving import running

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
ADDRESS = "http://localhost:8080"


def command_lines(page: Path) -> list[str]:
    """What a page shows to be typed after ``crossforge``, without comments."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    lines = "".join(block for language, block in blocks if not language).replace("\\\n", " ").splitlines()
    shown = (line.removeprefix("crossforge ") for line in lines if line.startswith("crossforge "))
    return [re.split(r"\s[#>]", line)[0] for line in shown]


def headings(page: Path) -> set[str]:
    """The headings of a page, as links to them are written."""
    lines = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in lines}


def test_python_examples_run(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "demo-bundle").symlink_to(demo_bundle)
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


def test_long_passages_and_trimming_run_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parity = make_parity(pairs_sha256=digest_pairs(verification_pairs()))
    write_bundle(tmp_path / "demo-bundle", variant_overrides={Precision.FP32: {"parity": parity}})
    article = "Nights in the desert are cold. " * 60 + "Berlin has 3.8 million inhabitants."
    (tmp_path / "articles.txt").write_text(f"{article}\nA violin has four strings.\n", encoding="utf-8")
    german = {"qid": "1", "query": "Wie viele leben in Berlin?", "passages": [{"id": "1", "text": "Berlin hat Einwohner."}]}
    (tmp_path / "xquad-de.jsonl").write_text(json.dumps(german), encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    told = {}
    for line in command_lines(ROOT / "README.md"):
        if "--chunk" in line or line.startswith("trim "):
            result = CliRunner().invoke(app, shlex.split(line))
            assert result.exit_code == 0, result.output
            told[line.split()[0]] = result.output

    assert re.search(r"\[\d+ of \d+\]", told["rank"])
    assert "Wrote demo-german" in told["trim"]
    size = {name: (tmp_path / name / "onnx" / "model.onnx").stat().st_size for name in ("demo-bundle", "demo-german")}
    assert size["demo-german"] < size["demo-bundle"]


def test_command_lines_have_only_options_that_there_are() -> None:
    commands = typer.main.get_command(app).commands
    lines = [(page.name, line) for page in PAGES for line in command_lines(page)]
    assert len(lines) > 50
    for page, line in lines:
        name, *arguments = shlex.split(line)
        command = commands[name]
        _, left, _ = command.make_parser(command.context_class(command)).parse_args(arguments)  # raises on an unknown option
        assert not left, f"{page} gives {left} to crossforge {name}"


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
    for document in PAGES:
        for link in re.findall(r"\]\(([^)]+)\)", document.read_text(encoding="utf-8")):
            name, _, heading = link.partition("#")
            target = document.parent / name if name else document
            if "://" in link:
                continue
            assert target.exists(), f"{document.name} links to {link}"
            assert not heading or heading in headings(target), f"{document.name} links to {link}"


def test_the_namespace_has_no_init_file() -> None:
    assert not list(ROOT.glob("*/crossforge/__init__.py"))
