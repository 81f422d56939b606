"""The Dockerfiles: what they build from, what they start, and as whom. `make check` lints them."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from crossforge.profiles import EngineError
from crossforge.runtime.serving import health
from crossforge.runtime.sessions.native.library import BUILD_COMMAND, default_library_dir
from support.deploy import IMAGES, ROOT, Image, parse_serve
from support.serving import RunningService, gated_service

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(params=IMAGES)
def extra(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def image(extra: str) -> Image:
    return IMAGES[extra]


def test_every_stage_starts_from_one_base_of_a_full_version(image: Image) -> None:
    base = next(value for value in image.values("ARG") if value.startswith("BASE="))

    assert re.fullmatch(r"BASE=docker\.io/library/python:3\.\d+\.\d+-slim-\w+", base)
    stages = {value.split()[2] for value in image.values("FROM")[:-1]}
    assert stages
    assert {value.split()[0] for value in image.values("FROM")} <= {"${BASE}", *stages}
    assert image.values("FROM")[-1] == "${BASE}", "neither compiler nor pip's files come along"


def test_it_runs_as_a_user_that_is_a_number_and_not_root(image: Image) -> None:
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", image.last("USER"))


def test_no_shell_stands_between_the_signal_and_the_service(image: Image) -> None:
    assert json.loads(image.last("ENTRYPOINT")) == list(PROJECT["scripts"])
    assert isinstance(json.loads(image.last("CMD")), list)


def test_what_it_starts_is_a_command_that_the_service_understands(image: Image, extra: str) -> None:
    started = parse_serve(json.loads(image.last("CMD")))

    assert started["host"] == "0.0.0.0"
    assert str(started["port"]) == image.last("EXPOSE")
    assert started["bundle"] == ["/models/reranker"]
    assert (started["provider"], started["strict"]) == (("cuda", True) if extra == "gpu" else ("auto", False))


def test_it_installs_the_runtime_for_its_device_and_the_service(image: Image, extra: str) -> None:
    (installed,) = re.findall(r'"\$1\[([\w,]+)\]"', " ".join(image.values("RUN")))

    assert installed.split(",") == [extra, "serve"]
    assert set(installed.split(",")) <= set(PROJECT["optional-dependencies"])


def test_the_native_engine_is_compiled_to_where_the_service_looks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    image = IMAGES["cpu"]
    ((cache, command),) = re.findall(r"XDG_CACHE_HOME=(\S+) \S+/(crossforge \w+)", " ".join(image.values("RUN")))
    monkeypatch.setenv("XDG_CACHE_HOME", image.environment()["XDG_CACHE_HOME"])

    assert command == BUILD_COMMAND
    assert Path(cache) in default_library_dir().parents
    assert Path(image.last("COPY").split()[-1]) in default_library_dir().parents


def test_it_holds_no_secret_and_fetches_nothing_by_itself(image: Image) -> None:
    names = [pair.split("=")[0] for key in ("ARG", "ENV", "LABEL") for value in image.values(key) for pair in value.split()]

    assert not [name for name in names if re.search("KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", name, re.IGNORECASE)]
    assert image.values("ADD") == []


def test_the_build_sees_what_it_copies_and_nothing_else(image: Image) -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    seen = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = {source for value in image.values("COPY") if not value.startswith("--from") for source in value.split()[:-1]}

    assert "*" in lines
    assert copied == seen
    assert all((ROOT / source).exists() for source in copied)


def test_everything_that_the_wheel_is_made_of_is_copied(image: Image) -> None:
    hatch = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]
    needed = {Path(package).parts[0] for package in hatch["wheel"]["packages"]} | {
        PROJECT["readme"],
        *PROJECT["license-files"],
    }
    copied = {source for value in image.values("COPY") for source in value.split()[:-1]}

    assert [name for name in needed if not any(fnmatch.fnmatch(name, source) for source in copied)] == []


def test_its_label_names_the_version_that_it_installs(image: Image) -> None:
    assert f"VERSION={PROJECT['version']}" in image.values("ARG")
    assert 'org.opencontainers.image.version="${VERSION}"' in image.last("LABEL")


def test_its_health_check_outlasts_the_services_own_probe(image: Image) -> None:
    options, command = image.health_check()
    (timeout_s,) = re.findall(r"timeout=(\d+)", command[-1])

    assert health.PROBE_TIMEOUT_S < int(timeout_s) < int(options["timeout"].removesuffix("s"))


def test_its_health_check_tells_a_service_that_answers_from_one_that_does_not(
    image: Image,
) -> None:
    with gated_service() as (service, session):
        session.let_through()
        well = check_health(image, service)
        service.models["tiny"].session.last_batch_at = None
        session.failures = [EngineError("the engine broke")]
        ill = check_health(image, service)
    gone = check_health(image, service)

    assert (well, ill, gone) == (0, 1, 1)


def check_health(image: Image, service: RunningService) -> int:
    """The exit status of the image's health check, against a service on another port, beside a proxy that leads nowhere."""
    _, (python, *arguments) = image.health_check()
    port = image.last("EXPOSE")
    assert python == "python"
    assert port in arguments[-1]
    arguments[-1] = arguments[-1].replace(port, service.url.rpartition(":")[2])
    environment = {**os.environ, "http_proxy": "http://127.0.0.1:9"}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, check=False).returncode


def test_the_engine_reports_to_nobody_and_writes_nothing(image: Image, tmp_path: Path) -> None:
    environment = {name: value for name, value in image.environment().items() if name != "PATH"}
    # Nothing else that would quieten it, such as CI=true.
    subprocess.run(
        [sys.executable, "-c", "import onnxruntime; onnxruntime.get_available_providers()"],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), **environment},
        check=True,
    )

    assert list(tmp_path.rglob("*")) == []
