"""Causal rerankers: from a decoder to a bundle that scores as the model card's own procedure does."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from huggingface_hub import HfApi
from onnx import numpy_helper
from sentence_transformers import CrossEncoder as Original
from transformers import AutoModelForCausalLM, PreTrainedModel
from typer.testing import CliRunner

from crossforge.export.causal import QWEN3, CausalOptions, CausalSource
from crossforge.export.cli import app
from crossforge.export.decoder import export_decoder, score_head
from crossforge.export.native import check_architecture
from crossforge.export.source import LoadedSource, SourceOptions, load_source
from crossforge.export.trimming import trim_bundle
from crossforge.profiles import Activation, ExecutionProvider, InputError, Precision, SourceError
from crossforge.runtime import CrossEncoder, Reranker
from crossforge.runtime.bundle import Bundle
from crossforge.runtime.loading import open_model
from crossforge.runtime.prompts import PromptTokenizer
from crossforge.runtime.scoring import compute_logits
from crossforge.runtime.templates import derive_prompt_template
from crossforge.runtime.tokenization import PairTokenizer
from crossforge.runtime.verification import verify_bundle
from support.builders import write_manifest
from support.causal_models import (
    CARD_TASK,
    CHAT_TEMPLATE,
    MAX_LENGTH,
    card_log_probabilities,
    make_tokenizer,
    save_as_cross_encoder,
    save_causal_model,
)
from support.fake_hub import FakeHub, publish
from support.tiny_models import TEXTS, edit_json, save_tiny_model

QUERY = "How many people live in Berlin?"
PASSAGES = [
    "Berlin has a population of 3,520,031 registered inhabitants.",
    "New York City is famous for the Metropolitan Museum of Art.",
    "",
    " \n答え。🦀 ",
    "The river Spree flows through the city. " * 40,
]
PAIRS = [(QUERY, passage) for passage in PASSAGES] + [("Why does bread rise?", "Yeast turns sugar into gas.")]
TEMPLATE = SourceOptions(causal=CausalOptions(template="qwen3"))
pytestmark = pytest.mark.filterwarnings("ignore::crossforge.profiles.TruncationWarning")
"""One of the pairs is too long on purpose."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_causal_model(tmp_path_factory.mktemp("causal") / "checkpoint")


@pytest.fixture(scope="module")
def written_by_sentence_transformers(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    folder = tmp_path_factory.mktemp("causal") / "cross-encoder"
    shutil.copytree(checkpoint, folder)
    save_as_cross_encoder(folder)
    return folder


@pytest.fixture(scope="module")
def few_pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pairs to judge and to calibrate on: few, because a prompt makes each of them long."""
    folder = tmp_path_factory.mktemp("pairs")

    def write(name: str, queries: list[str], texts: list[str]) -> Path:
        lines = [
            {"qid": str(i), "query": query, "passages": [{"id": str(j), "text": text} for j, text in enumerate(texts)]}
            for i, query in enumerate(queries)
        ]
        (folder / name).write_text("\n".join(map(json.dumps, lines)))
        return folder / name

    return {
        "verification": write("verification.jsonl", [QUERY, "Why does bread rise?"], TEXTS[:5]),
        "calibration": write("calibration.jsonl", ["How do I reset it?", "Who wrote it?"], TEXTS[6:14]),
    }


@pytest.fixture(scope="module")
def bundle(
    tmp_path_factory: pytest.TempPathFactory, written_by_sentence_transformers: Path, few_pairs: dict[str, Path]
) -> Path:
    """By the command line, of what sentence-transformers wrote, with all that an ONNX file can be made into."""
    folder = tmp_path_factory.mktemp("causal") / "bundle"
    pairs = [f"--{name}={path}" for name, path in few_pairs.items()]
    crossforge("export", written_by_sentence_transformers, folder, "--precision", "fp32,fp16,int8", "--no-gate", *pairs)
    return folder


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(checkpoint).eval()


def crossforge(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_scores_are_those_of_the_model_card(bundle: Path, model: PreTrainedModel) -> None:
    expected = card_log_probabilities(model, PAIRS)
    with Reranker.load(bundle, precision="fp32") as reranker:
        scored = reranker.score_pairs(PAIRS)
        scores = reranker.predict(PAIRS)

    np.testing.assert_allclose(scores, np.exp(expected[:, 1]), atol=1e-4, rtol=0)
    np.testing.assert_allclose(scored.logits[:, 0], expected[:, 1] - expected[:, 0], atol=1e-4, rtol=0)
    assert np.ptp(scores) > 0.1, "scores that hardly differ would prove nothing"
    assert scored.truncated.tolist() == [False, False, False, False, True, False]


def test_an_instruction_is_settable_when_a_bundle_is_loaded(bundle: Path, model: PreTrainedModel) -> None:
    task = "Find a passage that contradicts the claim."
    with Reranker.load(bundle, precision="fp32", instruction=task) as reranker:
        scores = reranker.predict(PAIRS)

    np.testing.assert_allclose(np.log(scores), card_log_probabilities(model, PAIRS, task=task)[:, 1], atol=1e-4, rtol=0)
    assert np.abs(np.log(scores) - card_log_probabilities(model, PAIRS)[:, 1]).max() > 1e-2


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_pair_scores_the_same_alone_and_in_any_batch(bundle: Path, precision: str) -> None:
    with Reranker.load(bundle, precision=precision) as reranker:
        together = reranker.score_pairs(PAIRS).logits
        alone = np.concatenate([reranker.score_pairs([pair]).logits for pair in PAIRS])

    np.testing.assert_allclose(together, alone, atol=2e-5, rtol=0)


def test_the_graph_takes_padding_on_either_side(bundle: Path) -> None:
    with Reranker.load(bundle, precision="fp32") as reranker:
        pairs = reranker.tokenizer.encode(QUERY, PASSAGES[:1])
        ids = np.concatenate([pairs.heads[0], pairs.passages[0], reranker.tokenizer.template.suffix.ids])[None]
        real, padding = np.ones_like(ids), np.zeros((1, 7), dtype=np.int64)
        rubbish = padding + 300
        plain = reranker.session.run({"input_ids": ids, "attention_mask": real})
        for order in (slice(None), slice(None, None, -1)):
            batch = {
                "input_ids": np.concatenate([rubbish, ids][order], axis=1),
                "attention_mask": np.concatenate([padding, real][order], axis=1),
            }
            np.testing.assert_allclose(reranker.session.run(batch), plain, atol=2e-5, rtol=0)


def test_the_head_is_the_difference_of_two_rows(bundle: Path, model: PreTrainedModel) -> None:
    vocabulary = make_tokenizer().get_vocab()
    rows = model.lm_head.weight.detach().numpy()
    graph = onnx.load(str(bundle / "onnx" / "model.onnx")).graph
    hidden = rows.shape[1]
    heads = [numpy_helper.to_array(t) for t in graph.initializer if sorted(t.dims) == [1, hidden]]

    assert any(np.allclose(head.ravel(), rows[vocabulary["yes"]] - rows[vocabulary["no"]]) for head in heads)
    assert [len(rows) in tensor.dims for tensor in graph.initializer].count(True) == 1, "the words' table, and no head"
    assert [value.name for value in graph.input] == ["input_ids", "attention_mask"]
    assert [value.name for value in graph.output] == ["logits"]


def test_without_a_no_the_head_is_the_row_of_yes(model: PreTrainedModel) -> None:
    head = score_head(model, CausalSource(prompt=QWEN3, true_token_id=7, false_token_id=None, label="yes"))
    torch.testing.assert_close(head.weight[0], model.lm_head.weight[7])


@pytest.mark.parametrize(
    ("family", "config"), [("llama", {"attention_bias": True}), ("qwen2", {"tie_word_embeddings": False}), ("gemma", {})]
)
def test_other_decoders_score_alike(tmp_path: Path, family: str, config: dict[str, bool]) -> None:
    loaded = load_source(str(save_causal_model(tmp_path / "checkpoint", family, num_hidden_layers=1, **config)), TEMPLATE)
    assert loaded.causal is not None
    onnx.save_model(export_decoder(loaded.model, loaded.causal), tmp_path / "model.onnx")
    tokenizer = _open_prompt(loaded)
    session = open_model(tmp_path / "model.onnx", ExecutionProvider.CPU, labels=1)
    pairs = tokenizer.encode_pairs(PAIRS)
    logits, _ = compute_logits(session, pairs, template=tokenizer.template, pad_token_id=0, labels=1)

    expected = card_log_probabilities(loaded.model, PAIRS)
    np.testing.assert_allclose(logits[:, 0], expected[:, 1] - expected[:, 0], atol=1e-4, rtol=0)
    assert np.ptp(logits) > 0.3


def test_every_variant_was_measured_and_the_bundle_verifies(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    verification = verify_bundle(bundle)

    assert set(manifest.variants) == {Precision.FP32, Precision.FP16, Precision.INT8}
    assert manifest.variants[Precision.FP32].parity.max_abs_diff < 1e-4
    assert manifest.variants[Precision.FP16].parity.max_abs_diff < 0.1
    assert 0 < manifest.variants[Precision.INT8].parity.max_abs_diff < 1
    assert verification.problems == ()


def test_the_manifest_says_what_stands_around_a_pair(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    prompt = manifest.prompt
    assert prompt is not None
    assert prompt.prefix + prompt.body + prompt.suffix == QWEN3.prefix + QWEN3.body + QWEN3.suffix
    assert prompt.instruction == CARD_TASK
    assert (manifest.scoring.labels, manifest.scoring.ranking_label) == (("yes - no",), 0)
    assert manifest.scoring.activation is Activation.SIGMOID
    assert manifest.truncation.max_length == MAX_LENGTH


def test_a_chat_template_and_a_template_by_name_are_read_alike(
    checkpoint: Path, written_by_sentence_transformers: Path, bundle: Path
) -> None:
    named, read = load_source(str(checkpoint), TEMPLATE), load_source(str(written_by_sentence_transformers))
    assert named.causal is not None
    assert read.causal is not None
    assert named.causal.prompt == QWEN3
    assert dataclasses.replace(read.causal, prompt=QWEN3) == named.causal
    assert (read.scoring, read.truncation) == (named.scoring, named.truncation)
    with Reranker.load(bundle, precision="fp32") as reranker:
        for pair in PAIRS:
            assert _ids(reranker.tokenizer, pair) == _ids(_open_prompt(named), pair)


def test_a_hub_id_is_read_as_its_folder_is(
    hub: FakeHub, written_by_sentence_transformers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(written_by_sentence_transformers, tmp_path / "checkpoint"))
    edit_json(folder / "config_sentence_transformers.json", activation_fn="torch.nn.modules.linear.Identity")
    commit = publish(hub, folder, "org/reranker").branches["main"]
    # transformers chose where to ask and where to keep things when it was imported.
    monkeypatch.setattr("transformers.utils.hub.TRANSFORMERS_CACHE", os.environ["HF_HUB_CACHE"])
    monkeypatch.setattr("transformers.utils.hub.list_repo_tree", HfApi().list_repo_tree)
    there, here = load_source("org/reranker"), load_source(str(folder))

    assert (there.source.id, there.source.revision) == ("org/reranker", commit)
    assert there.source.weights_sha256 == here.source.weights_sha256
    assert (there.causal, there.scoring, there.truncation) == (here.causal, here.scoring, here.truncation)
    assert there.scoring.activation is Activation.IDENTITY


def _ids(tokenizer: PairTokenizer, pair: tuple[str, str]) -> list[int]:
    pairs = tokenizer.encode_pairs([pair])
    return [*pairs.heads[0].tolist(), *pairs.passages[0].tolist(), *tokenizer.template.suffix.ids]


def _open_prompt(loaded: LoadedSource) -> PromptTokenizer:
    assert loaded.causal is not None
    backend, prompt = loaded.tokenizer.backend_tokenizer, loaded.causal.prompt
    return PromptTokenizer(backend, prompt, derive_prompt_template(backend, prompt), loaded.truncation)


def test_a_prompt_that_another_tokenizer_would_split_otherwise_fails_verification(bundle: Path, tmp_path: Path) -> None:
    altered = Path(shutil.copytree(bundle, tmp_path / "altered"))
    manifest = Bundle.open(altered).manifest
    write_manifest(altered, dataclasses.replace(manifest, prompt=dataclasses.replace(QWEN3, suffix="<|im_end|>\n")))
    assert verify_bundle(altered).template_problem is not None


def test_scores_are_those_of_sentence_transformers_prompts_included(
    written_by_sentence_transformers: Path, bundle: Path
) -> None:
    """Its prompt is a system message, which its chat template shows as the instruction."""
    original = Original(str(written_by_sentence_transformers), device="cpu")
    ours = CrossEncoder(str(bundle), device="cpu", precision="fp32")
    task = "Find a claim."

    np.testing.assert_allclose(ours.predict(PAIRS), original.predict(PAIRS), atol=1e-4, rtol=0)
    told = ours.predict(PAIRS, prompt=task)
    np.testing.assert_allclose(told, original.predict(PAIRS, prompt=task), atol=1e-4, rtol=0)
    assert np.abs(told - ours.predict(PAIRS)).max() > 1e-3


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (CHAT_TEMPLATE.replace("| first }}", "| first | trim }}"), "changes the texts"),
        (CHAT_TEMPLATE.replace("<|im_end|>\\n<|im_start|>assistant", "\\nAnswer:"), "no special token right after"),
        (CHAT_TEMPLATE.replace('"eq", "document"', '"eq", "query"'), "query and document once each"),
        ("{{ undefined_function() }}", "cannot be rendered"),
    ],
    ids=["trims", "unprotected", "no document", "broken"],
)
def test_a_chat_template_that_cannot_be_followed_exactly_is_refused(
    written_by_sentence_transformers: Path, tmp_path: Path, template: str, message: str
) -> None:
    folder = Path(shutil.copytree(written_by_sentence_transformers, tmp_path / "checkpoint"))
    assert template != CHAT_TEMPLATE
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(SourceError, match=message):
        load_source(str(folder))


def test_a_language_model_that_does_not_say_how_it_scores_is_refused(checkpoint: Path) -> None:
    with pytest.raises(SourceError, match=r"does not say how it scores a pair.*--template qwen3"):
        load_source(str(checkpoint))


def test_a_cross_encoder_has_no_template(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no language model.*--template"):
        load_source(str(save_tiny_model(tmp_path / "bert")), TEMPLATE)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}, "sliding window"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "length of a batch"),
        ({"model_type": "qwen2_moe"}, "does not know"),
    ],
    ids=["window", "positions", "family"],
)
def test_a_decoder_that_the_graph_would_not_follow_is_refused(
    checkpoint: Path, tmp_path: Path, config: dict[str, object], message: str
) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    edit_json(folder / "config.json", layer_types=None, **config)
    with pytest.raises(SourceError, match=message):
        load_source(str(folder), TEMPLATE)


def test_a_template_file_says_the_text(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "prompt.toml"
    path.write_text('prefix = "<|im_start|>"\nbody = "{query}\\n{passage}"\nsuffix = "<|im_end|>"\n')
    said = CausalOptions(template=str(path), yes_token="no", no_token="yes")
    loaded = load_source(str(checkpoint), SourceOptions(causal=said))

    assert loaded.causal is not None
    assert (loaded.causal.prompt.prefix, loaded.causal.prompt.body) == ("<|im_start|>", "{query}\n{passage}")
    assert loaded.scoring.labels == ("no - yes",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "/nowhere.toml"}, "cannot read the template"),
        ({"template": "qwen3", "yes_token": "Yessss"}, "no such token"),
        ({"template": "qwen3", "no_token": "yes"}, "same token"),
        ({"template": "{folder}/bad.toml"}, "is not a template"),
        ({"template": "{folder}/fixed.toml", "instruction": "Find it."}, "no place for an instruction"),
    ],
    ids=["no file", "no token", "one token", "no body", "no instruction"],
)
def test_wrong_options_are_refused(checkpoint: Path, tmp_path: Path, options: dict[str, str], message: str) -> None:
    (tmp_path / "bad.toml").write_text('prefix = ""\nbody = "{query}"\nsuffix = ""\n')
    (tmp_path / "fixed.toml").write_text('prefix = ""\nbody = "{query} {passage}"\nsuffix = ""\n')
    said = CausalOptions(**{name: value.replace("{folder}", str(tmp_path)) for name, value in options.items()})
    with pytest.raises(SourceError, match=message):
        load_source(str(checkpoint), SourceOptions(causal=said))


def test_lengths_without_room_for_a_passage_are_refused(checkpoint: Path) -> None:
    with pytest.raises(SourceError, match="max_length does not suit"):
        load_source(str(checkpoint), dataclasses.replace(TEMPLATE, max_length=40))


def test_a_trimmed_bundle_scores_the_same(bundle: Path, tmp_path: Path, few_pairs: dict[str, Path]) -> None:
    from crossforge.runtime.records import read_run

    texts = [text for pair in PAIRS for text in pair]
    manifest = trim_bundle(bundle, tmp_path / "trimmed", texts, runs=[read_run(few_pairs["verification"])])
    with Reranker.load(bundle, precision="fp32") as whole, Reranker.load(tmp_path / "trimmed", precision="fp32") as trimmed:
        np.testing.assert_allclose(trimmed.predict(PAIRS), whole.predict(PAIRS), atol=1e-6, rtol=0)
    assert manifest.trimmed is not None


def test_the_commands_take_a_causal_reranker(bundle: Path, tmp_path: Path) -> None:
    passages = tmp_path / "passages.txt"
    passages.write_text("\n".join(TEXTS[:4]))
    score = ["score", bundle, "-q", QUERY, *(f"-p{text}" for text in TEXTS[:4]), "--precision", "fp32", "--json"]
    scores = json.loads(crossforge(*score))["scores"]
    rows = json.loads(crossforge("rank", bundle, "-q", QUERY, "--passages", passages, "--precision", "fp32", "--json"))

    assert [row["corpus_id"] for row in rows["results"]] == np.argsort(-np.asarray(scores)).tolist()
    assert json.loads(crossforge(*score, "--instruction", "Find another."))["scores"] != scores
    assert f"instruction: {CARD_TASK}" in " ".join(crossforge("inspect", bundle).split())


def test_an_instruction_for_a_cross_encoder_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match="takes no instruction"):
        Reranker.load(tiny_bundle, instruction="Find it.")


def test_the_native_engine_refuses_a_decoder(checkpoint: Path) -> None:
    with pytest.raises(SourceError, match=r"native engine cannot run this model.*qwen3"):
        check_architecture(json.loads((checkpoint / "config.json").read_text()))
