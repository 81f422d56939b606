"""What a checkpoint says about its scores and its lengths, and what may be said instead."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from crossforge.export.source import LoadedSource, SourceOptions, load_source
from crossforge.profiles import Activation, SourceError, TruncationSide
from support.tiny_models import MAX_LENGTH, ActivationPlace, edit_json, save_tiny_model

SIGMOID = "torch.nn.modules.activation.Sigmoid"
IDENTITY = "torch.nn.modules.linear.Identity"
SOFTMAX = "torch.nn.modules.activation.Softmax"


# Activation


@pytest.mark.parametrize("place", ActivationPlace)
@pytest.mark.parametrize(
    ("name", "activation"),
    [(IDENTITY, Activation.IDENTITY), (SIGMOID, Activation.SIGMOID), (SOFTMAX, Activation.SOFTMAX)],
)
def test_the_activation_is_read_wherever_sentence_transformers_wrote_it(
    tmp_path: Path, place: ActivationPlace, name: str, activation: Activation
) -> None:
    # Three labels, so that what is read differs from the default for one label.
    save_tiny_model(tmp_path, labels=3, activation=name, activation_place=place)
    assert load_source(str(tmp_path)).scoring.activation is activation


@pytest.mark.parametrize("place", ActivationPlace)
def test_an_identity_is_read_from_a_model_with_one_label(tmp_path: Path, place: ActivationPlace) -> None:
    save_tiny_model(tmp_path, labels=1, activation=IDENTITY, activation_place=place)
    assert load_source(str(tmp_path)).scoring.activation is Activation.IDENTITY


@pytest.mark.parametrize(
    ("labels", "activation"), [(1, Activation.SIGMOID), (2, Activation.IDENTITY), (3, Activation.IDENTITY)]
)
def test_without_a_word_the_default_of_sentence_transformers_holds(
    tmp_path: Path, labels: int, activation: Activation
) -> None:
    assert load_source(str(save_tiny_model(tmp_path, labels=labels))).scoring.activation is activation


def test_the_newest_place_wins(checkpoint: Path) -> None:
    (checkpoint / ActivationPlace.FOLDER).write_text(f'{{"activation_fn": "{IDENTITY}"}}')
    edit_json(
        checkpoint / "config.json",
        sentence_transformers={"activation_fn": SIGMOID},
        sbert_ce_default_activation_function=SOFTMAX,
    )
    assert load_source(str(checkpoint)).scoring.activation is Activation.IDENTITY
    (checkpoint / ActivationPlace.FOLDER).unlink()
    assert load_source(str(checkpoint)).scoring.activation is Activation.SIGMOID


def test_an_unknown_activation_is_refused_until_one_is_named(checkpoint: Path) -> None:
    edit_json(checkpoint / "config.json", sentence_transformers={"activation_fn": "torch.nn.modules.activation.Tanh"})
    with pytest.raises(SourceError, match=r"Tanh.*--activation"):
        load_source(str(checkpoint))
    options = SourceOptions(activation=Activation.SIGMOID)
    assert load_source(str(checkpoint), options).scoring.activation is Activation.SIGMOID


@pytest.mark.parametrize("activation", [torch.nn.Identity(), torch.nn.Sigmoid()])
def test_what_the_installed_sentence_transformers_saves_is_read(
    tiny_checkpoint: Path, tmp_path: Path, activation: torch.nn.Module
) -> None:
    cross_encoder = pytest.importorskip("sentence_transformers").CrossEncoder
    cross_encoder(str(tiny_checkpoint), activation_fn=activation).save_pretrained(str(tmp_path))
    assert load_source(str(tmp_path)).scoring.activation.name == type(activation).__name__.upper()


# Lengths


def test_a_pair_may_be_as_long_as_the_model_reads(tiny_source: LoadedSource) -> None:
    assert tiny_source.truncation.max_length == MAX_LENGTH
    assert tiny_source.truncation.side is TruncationSide.RIGHT


@pytest.mark.parametrize("architecture", ["roberta", "xlm-roberta"])
def test_514_positions_of_a_roberta_hold_512_tokens(tmp_path: Path, architecture: str) -> None:
    save_tiny_model(tmp_path, architecture, max_position_embeddings=514)
    edit_json(tmp_path / "tokenizer_config.json", model_max_length=10**30)  # the tokenizer does not know
    assert load_source(str(tmp_path)).truncation.max_length == 512


def test_the_shorter_of_tokenizer_and_positions_counts(tmp_path: Path) -> None:
    save_tiny_model(tmp_path, max_position_embeddings=200)
    edit_json(tmp_path / "tokenizer_config.json", model_max_length=60)
    assert load_source(str(tmp_path)).truncation.max_length == 60
    edit_json(tmp_path / "tokenizer_config.json", model_max_length=1000)
    assert load_source(str(tmp_path)).truncation.max_length == 200


def test_max_length_is_lowered_on_request(tiny_checkpoint: Path) -> None:
    assert load_source(str(tiny_checkpoint), SourceOptions(max_length=40)).truncation.max_length == 40


def test_a_model_that_does_not_know_its_limit_must_be_told_one(tmp_path: Path) -> None:
    save_tiny_model(tmp_path, "deberta-v2", max_position_embeddings=0)  # positions are relative, without a table
    edit_json(tmp_path / "tokenizer_config.json", model_max_length=10**30)
    with pytest.raises(SourceError, match="--max-length"):
        load_source(str(tmp_path))
    assert load_source(str(tmp_path), SourceOptions(max_length=300)).truncation.max_length == 300


@pytest.mark.parametrize("max_length", [-1, 0, 4, MAX_LENGTH + 1])
def test_a_max_length_that_the_model_cannot_have_is_refused(tiny_checkpoint: Path, max_length: int) -> None:
    with pytest.raises(SourceError, match=rf"got {max_length}; allowed: 5 to {MAX_LENGTH}"):
        load_source(str(tiny_checkpoint), SourceOptions(max_length=max_length))


def test_a_query_keeps_64_tokens_where_there_is_room(tmp_path: Path) -> None:
    save_tiny_model(tmp_path, max_position_embeddings=512)
    edit_json(tmp_path / "tokenizer_config.json", model_max_length=512)
    assert load_source(str(tmp_path)).truncation.query_max_length == 64


@pytest.mark.parametrize(("max_length", "query_max_length"), [(MAX_LENGTH, 46), (20, 8), (5, 1)])
def test_a_query_keeps_half_of_a_short_pair(tiny_checkpoint: Path, max_length: int, query_max_length: int) -> None:
    assert (
        load_source(str(tiny_checkpoint), SourceOptions(max_length=max_length)).truncation.query_max_length
        == query_max_length
    )


def test_query_max_length_leaves_one_token_to_the_passage(tiny_checkpoint: Path) -> None:
    options = SourceOptions(max_length=20, query_max_length=16)
    assert load_source(str(tiny_checkpoint), options).truncation.query_max_length == 16


@pytest.mark.parametrize("query_max_length", [-1, 0, 17, 100])
def test_a_query_max_length_without_room_for_a_passage_is_refused(tiny_checkpoint: Path, query_max_length: int) -> None:
    with pytest.raises(SourceError, match=rf"got {query_max_length}; allowed: 1 to 16"):
        load_source(str(tiny_checkpoint), SourceOptions(max_length=20, query_max_length=query_max_length))


def test_the_tokenizers_truncation_side_is_kept(checkpoint: Path) -> None:
    edit_json(checkpoint / "tokenizer_config.json", truncation_side="left")
    assert load_source(str(checkpoint)).truncation.side is TruncationSide.LEFT


# Labels


@pytest.mark.parametrize(("labels", "ranking_label"), [(1, 0), (2, 1), (3, None)])
def test_the_last_of_one_or_two_labels_ranks_and_none_of_three(
    tmp_path: Path, labels: int, ranking_label: int | None
) -> None:
    scoring = load_source(str(save_tiny_model(tmp_path, labels=labels))).scoring
    assert scoring.ranking_label == ranking_label
    assert scoring.labels == tuple(f"LABEL_{i}" for i in range(labels))


def test_the_ranking_label_can_be_named(tmp_path: Path) -> None:
    save_tiny_model(tmp_path, labels=3)
    for label in range(3):
        assert load_source(str(tmp_path), SourceOptions(ranking_label=label)).scoring.ranking_label == label


@pytest.mark.parametrize("ranking_label", [-1, 3])
def test_a_ranking_label_that_is_not_there_is_refused(tmp_path: Path, ranking_label: int) -> None:
    save_tiny_model(tmp_path, labels=3)
    with pytest.raises(SourceError, match=rf"got {ranking_label}; allowed: 0 to 2"):
        load_source(str(tmp_path), SourceOptions(ranking_label=ranking_label))
