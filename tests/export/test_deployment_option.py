"""The deployment profile that ``tune`` writes, in every command that runs a bundle."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from crossforge.export.cli import app
from crossforge.profiles import Precision
from support.builders import make_parity, write_bundle

RUNS_NO_BUNDLE = {"demo", "export", "quantize", "trim", "build", "native", "inspect", "push"}
SETS_ITS_OWN = {"tune", "triton"}
"""``tune`` looks for a setting, ``triton`` writes one into the model's own configuration."""


def crossforge(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.stderr
    return result


def commands() -> dict[str, Callable[..., Any]]:
    found = [
        c for group in (app, *(g.typer_instance for g in app.registered_groups)) if group for c in group.registered_commands
    ]
    return {c.name or c.callback.__name__: c.callback for c in found if c.callback}


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default is int8; the profile says fp32."""
    monkeypatch.chdir(tmp_path)
    Path("deployment.toml").write_text('precision = "fp32"\nproviders = ["cpu"]\nworkers = 1\nbudget_tokens = 100\n')
    Path("passages.txt").write_text("berlin is the city\na passage\n")
    passages = [{"id": "a", "text": "berlin is the city"}, {"id": "b", "text": "a passage"}]
    Path("run.jsonl").write_text(json.dumps({"qid": "1", "query": "where is the city", "passages": passages}))
    Path("qrels.txt").write_text("1 0 a 1\n")
    Path("pairs.csv").write_text("text1,text2\nwhere is the city,a passage\n")
    precisions = (Precision.FP32, Precision.FP16, Precision.INT8)
    overrides = {precision: {"parity": make_parity(reference="fp32")} for precision in precisions[1:]}
    return write_bundle(tmp_path / "bundle", precisions=precisions, variant_overrides=overrides)


def test_every_command_that_runs_a_bundle_takes_one() -> None:
    taking = {name for name, callback in commands().items() if "deployment" in inspect.signature(callback).parameters}
    assert taking == commands().keys() - RUNS_NO_BUNDLE - SETS_ITS_OWN


@pytest.mark.parametrize(
    "arguments",
    [
        ("score", "-q", "where is the city", "-p", "a passage"),
        ("rank", "-q", "where is the city", "--passages", "passages.txt"),
        ("pairs", "pairs.csv"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_what_scores_honours_it(bundle: Path, arguments: tuple[str, ...]) -> None:
    command, *rest = arguments
    plain = json.loads(crossforge(command, bundle, *rest, "--json").stdout)
    tuned = json.loads(crossforge(command, bundle, *rest, "--deployment", "deployment.toml", "--json").stdout)
    assert (plain["precision"], tuned["precision"]) == ("int8", "fp32")


def test_evaluate_judges_what_it_names_beside_fp32(bundle: Path) -> None:
    arguments = (
        "evaluate",
        bundle,
        "--run",
        "run.jsonl",
        "--qrels",
        "qrels.txt",
        "--json",
        "--deployment",
        "deployment.toml",
    )
    assert json.loads(crossforge(*arguments).stdout)["variants"].keys() == {"fp32"}
    Path("deployment.toml").write_text('precision = "int8"\n')
    assert json.loads(crossforge(*arguments).stdout)["variants"].keys() == {"fp32", "int8"}
    Path("deployment.toml").write_text("workers = 1\n")
    assert json.loads(crossforge(*arguments).stdout)["variants"].keys() == {"fp32", "fp16", "int8"}


def test_verify_scores_the_golden_pairs_by_it(bundle: Path) -> None:
    document = json.loads(crossforge("verify", bundle, "--deployment", "deployment.toml", "--json").stdout)
    assert document["deployed"]["precision"] == "fp32"
    assert document["passed"]


def test_doctor_explains_it(bundle: Path) -> None:
    document = json.loads(crossforge("doctor", bundle, "--deployment", "deployment.toml", "--json").stdout)
    assert document["decision"] == "fp32 on cpu"


def test_doctor_needs_the_bundle_that_it_is_for(bundle: Path) -> None:  # noqa: ARG001
    result = CliRunner().invoke(app, ["doctor", "--deployment", "deployment.toml"])
    assert result.exit_code == 2
    assert "--deployment says how a bundle is run" in result.stderr
