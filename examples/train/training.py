"""A cross-encoder on the weights of another model, trained with binary cross-entropy or localized contrastive estimation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import torch
from datasets import Dataset
from mining import Group
from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss, ListNetLoss

from crossforge.profiles import InputError

HIT, MISS = 0.0, float("-inf")
"""Labels of a listwise target: their softmax is 1 for the relevant passage and 0 for the others."""


class Loss(StrEnum):
    BCE = "bce"
    LCE = "lce"


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """A training run; equal options train the same model on the same machine."""

    loss: Loss
    negatives: int = 4
    epochs: float = 3.0
    queries_per_step: int = 8
    learning_rate: float = 1e-4
    max_length: int = 512
    query_max_length: int = 64
    frozen_layers: int = 0
    bf16: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.negatives < 1 or self.queries_per_step < 1 or self.epochs <= 0 or self.frozen_layers < 0:
            raise InputError("negatives, queries-per-step and epochs must be positive, frozen-layers not negative", got=self)
        if not 0 < self.query_max_length <= self.max_length - 4:
            raise InputError(
                "query_max_length leaves no room for a passage",
                got=self.query_max_length,
                allowed=f"1 to {self.max_length - 4}, for pairs of {self.max_length} tokens",
            )


def load_base(base: str, options: TrainingOptions) -> CrossEncoder:
    """A cross-encoder with one logit on the weights of ``base``; its head is new and random."""
    torch.manual_seed(options.seed)
    # What the loss trains is what predict() should return: a probability, or a logit that means nothing by itself.
    activation = torch.nn.Sigmoid() if options.loss is Loss.BCE else torch.nn.Identity()
    model = CrossEncoder(base, num_labels=1, max_length=options.max_length, activation_fn=activation, device="cpu")
    encoder = model.model.base_model
    if options.frozen_layers:
        for part in (encoder.embeddings, *encoder.encoder.layer[: options.frozen_layers]):
            part.requires_grad_(False)
    return model


def training_set(groups: Sequence[Group], loss: Loss) -> Dataset:
    """BCE reads pairs with a label, LCE lists with the relevant passage first; the pairs are the same."""
    if loss is Loss.LCE:
        return Dataset.from_dict(
            {
                "query": [group.query for group in groups],
                "passages": [[group.positive, *group.negatives] for group in groups],
                "labels": [[HIT] + [MISS] * len(group.negatives) for group in groups],
            }
        )
    rows = [
        (group.query, passage, float(passage == group.positive))
        for group in groups
        for passage in (group.positive, *group.negatives)
    ]
    return Dataset.from_dict(dict(zip(("query", "passage", "label"), map(list, zip(*rows, strict=True)), strict=True)))


def training_loss(model: CrossEncoder, loss: Loss) -> torch.nn.Module:
    """Binary cross-entropy, or localized contrastive estimation (Gao, Dai and Callan 2021): cross-entropy of one softmax
    over the relevant passage and its negatives. ListNet is that with a target of one 1 and zeros; with the labels 1 and
    0 its target would be their softmax, which gives the negatives most of the mass.
    """
    # -1: all passages of a step in one forward pass.
    return BinaryCrossEntropyLoss(model) if loss is Loss.BCE else ListNetLoss(model, mini_batch_size=-1)


def train(model: CrossEncoder, groups: Sequence[Group], options: TrainingOptions, *, scratch: Path) -> list[float]:
    """Train in place; returns the mean loss of every ten steps. A step reads as many pairs with either loss."""
    rows_per_query = 1 if options.loss is Loss.LCE else 1 + options.negatives
    arguments = CrossEncoderTrainingArguments(
        output_dir=str(scratch),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.queries_per_step * rows_per_query,
        learning_rate=options.learning_rate,
        warmup_ratio=0.1,
        seed=options.seed,
        bf16=options.bf16,
        use_cpu=True,
        dataloader_pin_memory=False,
        logging_steps=10,
        save_strategy="no",
        report_to="none",
    )
    trainer = CrossEncoderTrainer(
        model=model,
        args=arguments,
        train_dataset=training_set(groups, options.loss),
        loss=training_loss(model, options.loss),
    )
    trainer.train()
    return [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
