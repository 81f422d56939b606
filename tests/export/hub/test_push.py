"""Bundles that are published: the real huggingface_hub against a service on the loopback."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from crossforge.export.cli import app
from crossforge.export.hub.push import CardOrigin, PushOptions, push_bundle
from crossforge.profiles import (
    GoldenPair,
    HubAccessError,
    HubUnavailableError,
    InputError,
    IntegrityError,
    Manifest,
    Precision,
    Source,
)
from crossforge.runtime import Reranker
from support.builders import (
    make_engine_record,
    make_engine_spec,
    read_manifest,
    record_again,
    write_bundle,
    write_manifest,
)
from support.fake_hub import FakeHub

FP32, INT8 = Precision.FP32, Precision.INT8
REPO = "org/name"
PAIR = ("where is the city", "berlin")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle", precisions=(FP32, INT8))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def published(hub: FakeHub, branch: str = "main") -> dict[str, bytes]:
    return hub.repositories[REPO].files(branch)


def of_source(bundle: Path, source: str, revision: str | None = None) -> None:
    manifest = read_manifest(bundle)
    source_ = Source(id=source, revision=revision, weights_sha256=manifest.source.weights_sha256)
    write_manifest(bundle, dataclasses.replace(manifest, source=source_))


def test_what_was_pushed_is_loaded(hub: FakeHub, bundle: Path) -> None:
    push = push_bundle(bundle, REPO)

    with Reranker.load(bundle) as here, Reranker.load(REPO) as there:
        assert here.predict([PAIR]) == there.predict([PAIR])
    assert push.commit == hub.repositories[REPO].branches["main"]
    assert push.url == f"{hub.url}/{REPO}/commit/{push.commit}"


def test_all_goes_in_one_commit(hub: FakeHub, bundle: Path) -> None:
    push = push_bundle(bundle, REPO, PushOptions(message="The first"))

    assert len([request for request in hub.asked() if "/commit/" in request]) == 1
    assert hub.repositories[REPO].messages[1:] == ["The first"]
    names = ["README.md", "crossforge.json", "onnx/model.onnx", "onnx/model_int8.onnx", "tokenizer.json"]
    assert list(push.files) == names
    assert {name: len(published(hub)[name]) for name in names} == push.files
    assert published(hub)["README.md"].decode() == push.card


def test_a_second_push_changes_what_changed(hub: FakeHub, bundle: Path) -> None:
    push_bundle(bundle, REPO, PushOptions(variants=(FP32,)))
    hub.asked()
    push_bundle(bundle, REPO)

    assert "POST /api/repos/create" not in hub.asked()
    assert "| int8 |" in published(hub)["README.md"].decode()


def test_the_variants_that_are_named_go_alone(hub: FakeHub, bundle: Path) -> None:
    push = push_bundle(bundle, REPO, PushOptions(variants=(FP32,)))
    manifest = Manifest.from_json(published(hub)["crossforge.json"].decode())

    assert list(manifest.variants) == [FP32]
    assert sorted(manifest.files) == ["onnx/model.onnx", "tokenizer.json"]
    assert [(item.name, item.why) for item in push.left_out] == [("onnx/model_int8.onnx", "of the variant int8")]
    with Reranker.load(REPO) as reranker:
        assert reranker.precision == FP32


def test_a_variant_that_the_bundle_has_not_is_refused(hub: FakeHub, bundle: Path) -> None:
    with pytest.raises(InputError, match="no such variant"):
        push_bundle(bundle, REPO, PushOptions(variants=(Precision.FP16,)))
    assert hub.asked() == []


def test_an_altered_file_is_not_pushed(hub: FakeHub, bundle: Path) -> None:
    (bundle / "tokenizer.json").write_text((bundle / "tokenizer.json").read_text() + " ")
    with pytest.raises(IntegrityError, match=r"is not pushed: tokenizer\.json has"):
        push_bundle(bundle, REPO)
    assert hub.asked() == []


def test_a_bundle_that_scores_otherwise_is_not_pushed(hub: FakeHub, bundle: Path) -> None:
    manifest = read_manifest(bundle)
    golden = (GoldenPair(query=PAIR[0], passage=PAIR[1], logits=(99.0,)),)
    write_manifest(bundle, dataclasses.replace(manifest, golden=golden))
    with pytest.raises(IntegrityError, match="is not pushed"):
        push_bundle(bundle, REPO)
    assert hub.asked() == []


@pytest.mark.parametrize("engines", [False, True])
def test_engines_go_on_request_alone(hub: FakeHub, bundle: Path, engines: bool) -> None:
    model = {"onnx/model.onnx": read_manifest(bundle).files["onnx/model.onnx"].sha256}
    current = make_engine_record(make_engine_spec(precision=FP32, model=model))
    outdated = make_engine_record(make_engine_spec(precision=FP32, model={"onnx/model.onnx": "4" * 64}))
    for record in (current, outdated):
        (bundle / "tensorrt").mkdir(exist_ok=True)
        (bundle / record.spec.path).write_bytes(b"engine")
        (bundle / record.spec.record_path).write_text(record.to_json())
        record_again(bundle, record.spec.path)
        record_again(bundle, record.spec.record_path)

    push = push_bundle(bundle, REPO, PushOptions(engines=engines))

    own = {current.spec.path, current.spec.record_path}
    assert own & push.files.keys() == (own if engines else set())
    assert outdated.spec.path in {item.name for item in push.left_out}
    assert own & read_files(hub) == (own if engines else set())


def read_files(hub: FakeHub) -> set[str]:
    return set(Manifest.from_json(published(hub)["crossforge.json"].decode()).files)


def test_what_is_not_of_the_bundle_stays_at_home(hub: FakeHub, bundle: Path) -> None:
    (bundle / "notes.txt").write_text("mine")
    (bundle / "LICENSE").write_text("yours")
    (bundle / "native").mkdir()
    (bundle / "native" / "lib.so").write_bytes(b"compiled")
    record_again(bundle, "native/lib.so")

    push = push_bundle(bundle, REPO)

    assert {item.name: item.why for item in push.left_out} == {
        "native/lib.so": "compiled code, for one kind of machine",
        "notes.txt": "not in the manifest",
    }
    assert published(hub)["LICENSE"] == b"yours"
    assert read_files(hub) == {"onnx/model.onnx", "onnx/model_int8.onnx", "tokenizer.json"}


def test_the_bundles_own_card_goes_as_it_is(hub: FakeHub, bundle: Path) -> None:
    (bundle / "README.md").write_text("# Mine\n")
    record_again(bundle, "README.md")
    push = push_bundle(bundle, REPO)

    assert push.card_origin is CardOrigin.BUNDLE
    assert published(hub)["README.md"] == b"# Mine\n"
    assert "README.md" not in read_files(hub)


def test_a_card_that_somebody_changed_on_the_hub_stays(hub: FakeHub, bundle: Path) -> None:
    push_bundle(bundle, REPO)
    repository = hub.repositories[REPO]
    changed = published(hub)["README.md"].replace(b"# name", b"# My name")
    repository.commit("main", {"README.md": changed})

    kept = push_bundle(bundle, REPO)
    assert (kept.card_origin, published(hub)["README.md"]) == (CardOrigin.KEPT, changed)
    assert "README.md" not in kept.files

    replaced = push_bundle(bundle, REPO, PushOptions(replace_card=True))
    assert replaced.card_origin is CardOrigin.GENERATED
    assert published(hub)["README.md"].decode() == replaced.card


def test_a_card_that_was_generated_is_made_anew(hub: FakeHub, bundle: Path) -> None:
    first = push_bundle(bundle, REPO, PushOptions(variants=(FP32,)))
    (bundle / "README.md").write_text(first.card)  # as `hf download --local-dir` leaves it

    assert push_bundle(bundle, REPO).card_origin is CardOrigin.GENERATED
    assert published(hub)["README.md"].decode() != first.card


def test_license_and_language_are_those_of_the_source(hub: FakeHub, bundle: Path) -> None:
    source = hub.add("cross-encoder/base", {"config.json": b"{}"})
    source.card_data = {"license": "mit", "language": "en"}
    of_source(bundle, "cross-encoder/base", source.branches["main"])
    push = push_bundle(bundle, REPO)

    assert "license: mit\n" in push.card
    assert "language:\n- en\n" in push.card
    assert push.notes == ()


@pytest.mark.parametrize("there", [True, False])
def test_what_the_source_does_not_say_is_not_in_the_card(hub: FakeHub, bundle: Path, there: bool) -> None:
    if there:
        hub.add("cross-encoder/base", {"config.json": b"{}"})
    of_source(bundle, "cross-encoder/base")
    push = push_bundle(bundle, REPO)

    assert "license:" not in push.card
    assert "license" in push.notes[0]


def test_a_private_repository_is_made_on_request(hub: FakeHub, bundle: Path) -> None:
    push_bundle(bundle, REPO, PushOptions(private=True))
    assert hub.repositories[REPO].private


def test_a_public_repository_is_not_taken_for_a_private_one(hub: FakeHub, bundle: Path) -> None:
    hub.add(REPO, {"a": b""})
    with pytest.raises(InputError, match="everybody may read it"):
        push_bundle(bundle, REPO, PushOptions(private=True))


def test_a_branch_is_made_and_the_main_one_stays(hub: FakeHub, bundle: Path) -> None:
    before = hub.add(REPO, {"a": b""}).branches["main"]
    push = push_bundle(bundle, REPO, PushOptions(branch="next"))

    assert hub.repositories[REPO].branches == {"main": before, "next": push.commit}
    assert 'Reranker.load("org/name", revision="next")' in push.card
    with Reranker.load(f"{REPO}@next") as there:
        assert there.predict([PAIR]).shape == (1,)


def test_a_pull_request_leaves_the_branch(hub: FakeHub, bundle: Path) -> None:
    before = hub.add(REPO, {"a": b""}).branches["main"]
    push = push_bundle(bundle, REPO, PushOptions(create_pr=True))

    assert hub.repositories[REPO].branches["main"] == before
    assert push.pull_request == f"{hub.url}/{REPO}/discussions/1"
    assert "crossforge.json" in published(hub, "refs/pr/1")


@pytest.mark.parametrize(
    ("token", "message"), [(None, "no token is set"), ("hf_another", "no token is set, or it is not valid")]
)
def test_without_a_token_that_may_the_login_is_named(
    hub: FakeHub, bundle: Path, monkeypatch: pytest.MonkeyPatch, token: str | None, message: str
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubAccessError, match=rf"{message}.*hf auth login"):
        push_bundle(bundle, REPO)
    assert REPO not in hub.repositories


def test_a_token_that_may_only_read_is_refused(hub: FakeHub, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(REPO, {"a": b""})
    monkeypatch.setenv("HF_TOKEN", "hf_reads_only")
    with pytest.raises(HubAccessError, match="the token that is set does not allow it"):
        push_bundle(bundle, REPO)


def test_a_file_that_cannot_be_uploaded_is_named_and_nothing_is_committed(hub: FakeHub, bundle: Path) -> None:
    hub.refused = {"PUT /lfs": 403}
    with pytest.raises(
        HubAccessError, match=r"cannot push to org/name \(Error while uploading 'onnx/model.*does not allow it"
    ):
        push_bundle(bundle, REPO)
    assert hub.repositories[REPO].messages == [""]


def test_a_hub_that_does_not_answer_is_said(hub: FakeHub, bundle: Path) -> None:
    hub.status = 503
    with pytest.raises(HubUnavailableError, match="cannot push to org/name: the hub does not answer; got HTTP 503"):
        push_bundle(bundle, REPO)


@pytest.mark.parametrize("repo", ["name", "./org/name", "org/name@v1", "a/b/c"])
def test_a_name_that_is_none_is_refused(bundle: Path, repo: str) -> None:
    with pytest.raises(InputError, match="not named so"):
        push_bundle(bundle, repo)


def test_a_dry_run_shows_the_card_and_the_files_and_changes_nothing(hub: FakeHub, bundle: Path) -> None:
    done = run("push", bundle, REPO, "--dry-run")

    assert done.exit_code == 0
    assert done.stdout.startswith("---\n")
    assert "onnx/model_int8.onnx" in done.stderr
    assert "nothing was pushed" in done.stderr
    assert {request.partition(" ")[0] for request in hub.asked()} == {"GET"}
    assert REPO not in hub.repositories


def test_a_dry_run_needs_no_hub(hub: FakeHub, bundle: Path) -> None:
    hub.status = 503
    done = run("push", bundle, REPO, "--dry-run", "--json")

    document = json.loads(done.stdout)
    assert document["card_origin"] == "generated"
    assert "the hub does not answer" in document["notes"][0]
    assert document["size_bytes"] == sum(document["files"].values())


@pytest.mark.usefixtures("hub")
def test_the_command_pushes_and_says_where(bundle: Path) -> None:
    done = run("push", bundle, REPO, "--variants", "fp32", "--branch", "next")

    assert done.exit_code == 0
    assert done.stdout.startswith("Pushed 4 files, 0.0 MB: http://127.0.0.1")
    assert "not onnx/model_int8.onnx: of the variant int8" in done.stderr


@pytest.mark.usefixtures("hub")
def test_every_command_that_reads_a_bundle_takes_one_of_the_hub(bundle: Path, tmp_path: Path) -> None:
    push_bundle(bundle, REPO)
    commands: list[tuple[object, ...]] = [
        ("score", REPO, "-q", PAIR[0], "-p", PAIR[1]),
        ("inspect", f"{REPO}@main"),
        ("verify", REPO),
        ("doctor", REPO),
        ("triton", REPO, tmp_path / "models"),
        ("quantize", REPO, "--precision", "fp16", "--no-gate", "--output", tmp_path / "more"),
    ]
    for command in commands:
        done = run(*command)
        assert done.exit_code == 0, (command, done.stderr)
    assert (tmp_path / "models" / "reranker" / "1" / "bundle" / "onnx" / "model_int8.onnx").is_file()


@pytest.mark.parametrize("command", [("quantize", "--precision", "fp16"), ("build", "--target", "sm86")])
def test_a_command_that_changes_a_bundle_refuses_the_hub(hub: FakeHub, bundle: Path, command: tuple[str, ...]) -> None:
    push_bundle(bundle, REPO)
    with Reranker.load(REPO) as _:
        hub.asked()
    name, *options = command
    done = run(name, REPO, *options)

    assert done.exit_code == 2
    assert "changes a bundle, and there is no folder org/name" in done.stderr
    assert hub.asked() == []


@pytest.mark.usefixtures("hub")
def test_nothing_is_written_into_the_hubs_cache(bundle: Path, tmp_path: Path) -> None:
    push_bundle(bundle, REPO)
    with Reranker.load(REPO):
        (snapshot,) = (tmp_path / "hub-cache").glob("*/snapshots/*")
    for command in (("quantize", snapshot, "--precision", "fp16"), ("build", snapshot, "--target", "sm86")):
        done = run(*command)
        assert done.exit_code == 2
        assert "hub's cache, which other programs read" in done.stderr
