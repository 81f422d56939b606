"""Loading a checkpoint: what it says about itself is read, and what is not a cross-encoder is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from crossforge.export.source import LoadedSource, SourceOptions, digest_weights, load_source
from crossforge.profiles import InputError, SourceError
from support.tiny_models import edit_json, save_tiny_model


def test_a_checkpoint_is_loaded_as_float32_in_evaluation_mode(tiny_source: LoadedSource) -> None:
    assert not tiny_source.model.training
    assert {parameter.dtype for parameter in tiny_source.model.parameters()} == {torch.float32}
    assert tiny_source.source.id == "checkpoint"
    assert tiny_source.source.revision is None


def test_a_checkpoint_in_half_precision_is_loaded_as_float32(checkpoint: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    halves = {name: tensor.half() for name, tensor in weights.items()}
    save_file(halves, checkpoint / "model.safetensors", metadata={"format": "pt"})
    edit_json(checkpoint / "config.json", dtype="float16")
    model = load_source(str(checkpoint)).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


# What is refused


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="there is no folder"):
        load_source(str(tmp_path / "nowhere"))


def test_a_file_is_refused(tiny_checkpoint: Path) -> None:
    with pytest.raises(SourceError, match="is a file"):
        load_source(str(tiny_checkpoint / "config.json"))


@pytest.mark.parametrize("source", ["demo", "demo-embedder", ""])
def test_a_revision_of_what_is_here_is_refused(tiny_checkpoint: Path, source: str) -> None:
    with pytest.raises(InputError, match="a revision is a commit, branch or tag of a model on the hub"):
        load_source(source or str(tiny_checkpoint), SourceOptions(revision="main"))


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no config\.json"):
        load_source(str(tmp_path))


def test_an_unreadable_config_is_refused(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text("{")
    with pytest.raises(SourceError, match="cannot read the config"):
        load_source(str(checkpoint))


@pytest.mark.parametrize("name", ["modules.json", "config_sentence_transformers.json"])
def test_what_sentence_transformers_wrote_is_read_or_refused(checkpoint: Path, name: str) -> None:
    (checkpoint / name).write_text("{")
    with pytest.raises(SourceError, match=rf"cannot read .*{name}"):
        load_source(str(checkpoint))


def test_a_hub_id_without_an_answer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match=r"nobody/no-such-reranker.*hub"):
        load_source("nobody/no-such-reranker")


def test_a_bi_encoder_of_unknown_modules_is_refused(checkpoint: Path) -> None:
    pooling = "sentence_transformers.models.Pooling"
    (checkpoint / "modules.json").write_text(f'[{{"idx": 1, "name": "1", "path": "1_Pooling", "type": "{pooling}"}}]')
    with pytest.raises(SourceError, match="bi-encoder of modules that crossforge does not know"):
        load_source(str(checkpoint))


def test_a_model_without_head_is_refused(checkpoint: Path) -> None:
    AutoModel.from_pretrained(checkpoint).save_pretrained(checkpoint)
    with pytest.raises(SourceError, match="no classification head; got BertModel"):
        load_source(str(checkpoint))


def test_a_head_without_weights_is_refused(checkpoint: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("classifier")}
    save_file(kept, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SourceError, match=r"lacks 2 .*classifier\.bias.*score at random"):
        load_source(str(checkpoint))


def test_a_damaged_weights_file_is_refused(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(SourceError, match="cannot load the weights"):
        load_source(str(checkpoint))


def test_a_folder_without_weights_is_refused(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(SourceError, match="holds no weights"):
        load_source(str(checkpoint))


def test_a_folder_without_tokenizer_is_refused(checkpoint: Path) -> None:
    for file in (*checkpoint.glob("tokenizer*"), *checkpoint.glob("vocab*"), checkpoint / "special_tokens_map.json"):
        file.unlink()
    with pytest.raises(SourceError, match="tokenizer"):
        load_source(str(checkpoint))


def test_a_pickle_is_read_only_with_permission(checkpoint: Path, tiny_source: LoadedSource) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    torch.save(weights, checkpoint / "pytorch_model.bin")
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(SourceError, match=r"pytorch_model\.bin.*--allow-pickle"):
        load_source(str(checkpoint))
    loaded = load_source(str(checkpoint), SourceOptions(allow_pickle=True))
    assert loaded.source.weights_sha256 == tiny_source.source.weights_sha256


def test_code_of_the_checkpoint_runs_only_with_permission(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(checkpoint / "modules"))
    monkeypatch.syspath_prepend(checkpoint / "modules")
    proof = checkpoint / "it-ran"
    (checkpoint / "own_config.py").write_text(
        "from pathlib import Path\n"
        "from transformers import BertConfig\n"
        f"Path({str(proof)!r}).touch()\n"
        "class OwnConfig(BertConfig):\n"
        "    model_type = 'own'\n"
    )
    edit_json(checkpoint / "config.json", model_type="own", auto_map={"AutoConfig": "own_config.OwnConfig"})
    with pytest.raises(SourceError, match="--trust-remote-code"):
        load_source(str(checkpoint))
    assert not proof.exists()
    with pytest.raises(SourceError, match="cannot load the weights"):  # it brings a config, but no model to go with it
        load_source(str(checkpoint), SourceOptions(trust_remote_code=True))
    assert proof.exists()


# Digest


def test_the_digest_of_weights_is_stable(tiny_checkpoint: Path, tiny_source: LoadedSource) -> None:
    assert load_source(str(tiny_checkpoint)).source.weights_sha256 == tiny_source.source.weights_sha256


def test_two_fine_tunes_have_two_digests(tmp_path: Path, tiny_source: LoadedSource) -> None:
    other = load_source(str(save_tiny_model(tmp_path, seed=1)))
    assert other.source.weights_sha256 != tiny_source.source.weights_sha256


def test_the_smallest_change_of_one_weight_changes_the_digest(tiny_checkpoint: Path) -> None:
    model = load_source(str(tiny_checkpoint)).model
    before = digest_weights(model)
    with torch.no_grad():
        bias = model.classifier.bias
        bias.copy_(torch.nextafter(bias, torch.full_like(bias, torch.inf)))
    assert digest_weights(model) != before
