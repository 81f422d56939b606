from __future__ import annotations

from pathlib import Path

import pytest

from crossforge.profiles import InputError
from crossforge.runtime.hub import HubAddress, is_hub_id

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "repo", "revision"),
    [
        ("org/name", "org/name", "main"),
        ("org/name@v1.0", "org/name", "v1.0"),
        ("org/name-L6.v2@refs/pr/1", "org/name-L6.v2", "refs/pr/1"),
        (f"org/name@{COMMIT}", "org/name", COMMIT),
    ],
)
def test_an_address_has_an_owner_a_name_and_a_revision(text: str, repo: str, revision: str) -> None:
    assert HubAddress.parse(text) == HubAddress(repo=repo, revision=revision)


@pytest.mark.parametrize(
    "text",
    [
        "name",
        "./org/name",
        "../org/name",
        "/org/name",
        "~/name",
        "org/name/deeper",
        "org/",
        "org/name@",
        "-o/name",
        "a b/c",
        "",
    ],
)
def test_what_is_written_as_a_path_is_a_path(text: str) -> None:
    assert HubAddress.parse(text) is None


def test_a_path_that_exists_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)

    assert HubAddress.parse("org/name") is None
    assert HubAddress.parse("org/name@main") == HubAddress(repo="org/name")


def test_a_name_that_no_file_system_has_is_no_path() -> None:
    assert HubAddress.parse(f"{'o' * 300}/name") is not None


def test_a_path_object_is_a_path() -> None:
    assert HubAddress.parse(Path("org/name")) is None


def test_a_revision_may_be_named_apart() -> None:
    address = HubAddress(repo="org/name")

    assert address.at("v1") == HubAddress(repo="org/name", revision="v1")
    assert address.at("v1").at("v1") == address.at("v1")
    assert address.at(None) == address


@pytest.mark.parametrize("other", ["v2", "main"])
def test_two_revisions_are_refused(other: str) -> None:
    with pytest.raises(InputError, match="two revisions are named"):
        HubAddress(repo="org/name", revision="v1").at(other)


def test_a_revision_that_none_can_be_is_refused() -> None:
    with pytest.raises(InputError, match="no such revision"):
        HubAddress(repo="org/name").at("v 1")


@pytest.mark.parametrize(("revision", "pinned"), [(COMMIT, True), ("main", False), (COMMIT[:12], False)])
def test_only_a_whole_commit_never_changes(revision: str, pinned: bool) -> None:
    assert HubAddress(repo="org/name", revision=revision).is_pinned is pinned


@pytest.mark.parametrize(
    ("text", "is_one"), [("bert-base", True), ("org/name", True), ("./name", False), ("-name", False), ("a/b/c", False)]
)
def test_a_source_of_an_export_may_have_no_owner(text: str, is_one: bool) -> None:
    assert is_hub_id(text) is is_one
