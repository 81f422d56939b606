"""The drop-in for ``sentence_transformers.CrossEncoder``: ``predict`` and ``rank``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from crossforge.profiles import Activation, InputError
from crossforge.runtime.activation import Floats, activate, log_softmax
from crossforge.runtime.bundle import Bundle
from crossforge.runtime.cross_encoder.arguments import (
    as_pairs,
    choose_prompt,
    provider_of,
    read_choice,
    refuse,
    renamed,
    with_max_length,
)
from crossforge.runtime.cross_encoder.tensors import apply_to_tensor, import_torch, to_tensor
from crossforge.runtime.hub import HubAddress, HubOptions
from crossforge.runtime.precision import AUTO
from crossforge.runtime.reranker import Reranker
from crossforge.runtime.scored import warn_of_losses

logger = logging.getLogger(__name__)

ActivationFunction = Activation | str | Callable[[Any], Any]
"""An activation, its name, or a function of a float32 tensor [n, labels]."""


class CrossEncoder:
    """A bundle with the ``predict`` and ``rank`` of ``sentence_transformers.CrossEncoder``: same arguments, same answers.

    Made for code that calls sentence-transformers today: only the import changes. New code is shorter with
    :class:`~crossforge.runtime.Reranker`, which this class holds as ``reranker``. Every argument that a bundle cannot
    honour is refused with an InputError; docs/sentence-transformers.md says which, and which have no effect.

    Close it, or use it as a context manager.

    Args:
        model_name_or_path: The bundle's folder, or ``owner/name`` or ``owner/name@revision`` on the model hub.
        modules: Refused: a bundle has no torch modules.
        device: ``cpu``, ``cuda`` or ``cuda:0``, as a name or a torch device; None takes the best that this machine has. A
            device that is named and cannot be had is an error.
        prompts: Texts that can be put before each query, by name.
        default_prompt_name: The prompt of calls that name none.
        cache_folder: The hub's cache, for a bundle on the hub.
        trust_remote_code: Without effect: a bundle holds no code.
        revision: Of a bundle on the hub its branch, tag or commit. With a folder refused, unless it is the revision that the
            bundle was made of.
        local_files_only: Take a bundle on the hub from the cache alone.
        token: For the hub.
        model_kwargs: ``file_name`` chooses a variant by its ONNX file, ``provider`` an execution provider by ONNX
            Runtime's name; ``export`` may be False. Anything else is refused.
        processor_kwargs: Refused.
        config_kwargs: Refused.
        model_card_data: Without effect: nothing is published.
        backend: ``torch`` or ``onnx``, without effect: a bundle brings its engine.
        num_labels: Refused, unless the model has as many.
        max_length: Tokens of a pair; at most what the bundle was made for.
        activation_fn: What ``predict`` applies to logits instead of the bundle's activation. A function is given a torch
            tensor, float32 [n, labels], and needs torch; an :class:`Activation` or its name does not.
        precision: Not in sentence-transformers: ``auto``, which is int8 on most CPUs, or a variant's name; ``fp32`` gives
            the scores of PyTorch.

    Raises:
        InputError: An argument cannot be honoured.
        BundleError: The bundle is missing, damaged, or not understood.
        MachineError: This machine cannot run it as asked.
        EngineError: The model does not load.
    """

    activation_fn: ActivationFunction
    """Applied by calls that name none; may be set."""

    @renamed(
        "classifier_dropout",
        model_name="model_name_or_path",
        automodel_args="model_kwargs",
        tokenizer_args="processor_kwargs",
        tokenizer_kwargs="processor_kwargs",
        config_args="config_kwargs",
        cache_dir="cache_folder",
        default_activation_function="activation_fn",
    )
    def __init__(
        self,
        model_name_or_path: str | Path | None = None,
        *,
        modules: object = None,
        device: object = None,
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        cache_folder: str | None = None,
        trust_remote_code: bool = False,  # noqa: ARG002
        revision: str | None = None,
        local_files_only: bool = False,
        token: bool | str | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        config_kwargs: Mapping[str, Any] | None = None,
        model_card_data: object = None,  # noqa: ARG002
        backend: str = "torch",
        num_labels: int | None = None,
        max_length: int | None = None,
        activation_fn: ActivationFunction | None = None,
        precision: str = AUTO,
    ) -> None:
        refuse(modules, "modules", "Export the model that they make, and pass the bundle's folder.")
        refuse(processor_kwargs, "processor_kwargs", "Its tokenizer was fixed at export; max_length= can be lowered.")
        refuse(config_kwargs, "config_kwargs", "Its configuration was fixed at export.")
        if model_name_or_path is None:
            raise InputError("no bundle is named", got="None", allowed="a bundle's folder, or owner/name on the hub")
        on_hub = HubAddress.parse(model_name_or_path) is not None
        hub = HubOptions(
            revision=revision if on_hub else None,
            cache_folder=None if cache_folder is None else Path(cache_folder),
            token=token,
            offline=local_files_only,
        )
        bundle = Bundle.open(model_name_or_path, hub)
        manifest = bundle.manifest
        if not on_hub and revision not in (None, manifest.source.revision):
            raise InputError("the bundle is of another revision", got=revision, allowed=manifest.source.revision or "None")
        if num_labels not in (None, len(manifest.scoring.labels)):
            raise InputError("the model has another number of labels", got=num_labels, allowed=len(manifest.scoring.labels))
        choice = read_choice(manifest, device=device, backend=backend, precision=precision, model_kwargs=model_kwargs)
        self.activation_fn = _read_activation(manifest.scoring.activation if activation_fn is None else activation_fn)
        self.prompts = dict(prompts or {})
        self.default_prompt_name = default_prompt_name
        choose_prompt(self.prompts, default_prompt_name, None, None)
        self.reranker = Reranker.load(
            replace(bundle, manifest=with_max_length(manifest, max_length)),
            provider=choice.provider,
            precision=choice.precision,
            strict=choice.strict,
        )

    @property
    def num_labels(self) -> int:
        """Columns of the logits."""
        return len(self.reranker.manifest.scoring.labels)

    @property
    def max_length(self) -> int:
        """Tokens of a pair that the model reads."""
        return self.reranker.manifest.truncation.max_length

    max_seq_length = max_length

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda``; sentence-transformers gives a ``torch.device``."""
        return "cpu" if self.reranker.session.provider.is_cpu else "cuda"

    @renamed("num_workers", sentences="inputs", activation_fct="activation_fn")
    def predict(
        self,
        inputs: Any,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: ActivationFunction | None = None,
        apply_softmax: bool | None = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: object = None,
        pool: object = None,
        chunk_size: int | None = None,  # noqa: ARG002
        processing_kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Score pairs.

        Args:
            inputs: One pair of texts, or any number of them.
            prompt_name: A prompt of the constructor's, to be put before each query.
            prompt: A text to be put before each query, or the instruction of a causal reranker; wins over
                ``prompt_name``.
            batch_size: At least 1, and otherwise without effect: batches are cut by tokens.
            show_progress_bar: Show how far it is on stderr. None does at log level INFO or DEBUG.
            activation_fn: Instead of ``self.activation_fn``.
            apply_softmax: Apply a softmax over the labels, after the activation.
            convert_to_numpy: Return an array; False returns a list of torch tensors.
            convert_to_tensor: Return one torch tensor; wins over ``convert_to_numpy``.
            device: Refused, unless it is where the model runs.
            pool: Refused: one process computes, on all of its cores.
            chunk_size: Without effect, as without a pool in sentence-transformers.
            processing_kwargs: Refused.

        Returns:
            float32 [n], or [n, labels] of a model with several labels; for one pair the scalar, or [labels].

        Raises:
            InputError: A pair or an argument cannot be used.
            MissingPackageError: Tensors or a function are asked for, and torch is not installed.
            NonFiniteLogitsError: The model answered NaN or infinity.

        Warns:
            TruncationWarning: Text was cut.
        """
        self._check_call(batch_size=batch_size, device=device, pool=pool, processing_kwargs=processing_kwargs)
        activation = _read_activation(self.activation_fn if activation_fn is None else activation_fn)
        returns_tensors = convert_to_tensor or not convert_to_numpy
        if returns_tensors:
            import_torch("Returning tensors")  # before anything is computed
        pairs, is_single = as_pairs(inputs)
        before = choose_prompt(self.prompts, self.default_prompt_name, prompt, prompt_name)
        is_instruction = before and self.reranker.manifest.prompt is not None
        if before and not is_instruction:
            pairs = [_with_prompt(before, pair) for pair in pairs]
        with _progress(len(pairs), show_progress_bar) as advance:
            if is_instruction:
                encoded = self.reranker.tokenizer.with_instruction(before).encode_pairs(pairs)
                scored = self.reranker.score_encoded(encoded, on_batch=advance)
            else:
                scored = self.reranker.score_pairs(pairs, on_batch=advance)
        warn_of_losses(scored)
        scores = self._activated(scored.logits, activation, apply_softmax=bool(apply_softmax)) if pairs else np.empty(0)
        answer: Any = scores
        if returns_tensors:
            tensor = to_tensor(scores.astype(np.float32))
            answer = tensor if convert_to_tensor else list(tensor)
        return answer[0] if is_single else answer

    @renamed("num_workers", activation_fct="activation_fn")
    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        return_documents: bool = False,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: ActivationFunction | None = None,
        apply_softmax: bool = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: object = None,
        pool: object = None,
        chunk_size: int | None = None,
    ) -> list[dict[str, Any]]:
        """Rank documents against a query, best first; ties go to the document that came first.

        Args:
            query: A text.
            documents: Any number of texts.
            top_k: Return only so many; None returns all.
            return_documents: Put each document's text into its row.
            prompt_name: As for :meth:`predict`, and so are all that follow.
            prompt: See there.
            batch_size: See there.
            show_progress_bar: See there.
            activation_fn: See there.
            apply_softmax: See there.
            convert_to_numpy: See there; decides about the type of a score.
            convert_to_tensor: See there.
            device: See there.
            pool: See there.
            chunk_size: See there.

        Returns:
            Rows of ``corpus_id`` (int), ``score`` (float32) and, if asked for, ``text``.

        Raises:
            InputError: As :meth:`predict`; or the model has several labels.
        """
        if self.num_labels != 1:
            raise InputError(
                "rank() is for models with one label",
                got=f"{self.num_labels} labels",
                fix="Use predict(); or reranker.rank(), which ranks by the bundle's ranking label.",
            )
        if isinstance(documents, str):
            raise InputError("documents must be a list", got=f"str {documents!r:.60}", allowed="a list of texts")
        if top_k is not None and top_k < 0:
            raise InputError("top_k is negative", got=top_k, allowed="0 or more, or None")
        scores = self.predict(
            [(query, document) for document in documents],
            prompt_name=prompt_name,
            prompt=prompt,
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
            activation_fn=activation_fn,
            apply_softmax=apply_softmax,
            convert_to_numpy=convert_to_numpy,
            convert_to_tensor=convert_to_tensor,
            device=device,
            pool=pool,
            chunk_size=chunk_size,
        )
        rows: list[dict[str, Any]] = [{"corpus_id": i, "score": score} for i, score in enumerate(scores)]
        if return_documents:
            for row in rows:
                row["text"] = documents[row["corpus_id"]]
        return sorted(rows, key=lambda row: row["score"], reverse=True)[:top_k]

    def close(self) -> None:
        """Free the model and its threads."""
        self.reranker.close()

    def __enter__(self) -> CrossEncoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _check_call(self, *, batch_size: int, device: object, pool: object, processing_kwargs: object) -> None:
        if batch_size < 1:
            raise InputError("batch_size is too small", got=batch_size, allowed="1 or more")
        refuse(pool, "a pool", "One process computes on all cores of a machine.")
        refuse(processing_kwargs, "processing_kwargs", "Its tokenizer was fixed at export.")
        if isinstance(device, list | tuple):
            raise InputError("a bundle does not run on several devices at once", got=device, allowed="one device")
        if device is not None and provider_of(device) is not provider_of(self.device):
            raise InputError("the model was loaded elsewhere", got=device, allowed=self.device, fix="Load it with device=.")

    def _activated(self, logits: Floats, activation: Activation | Callable[[Any], Any], *, apply_softmax: bool) -> Floats:
        scores = activate(logits, activation) if isinstance(activation, Activation) else apply_to_tensor(activation, logits)
        if apply_softmax and scores.ndim > 1:
            scores = np.exp(log_softmax(scores))
        return scores[:, 0] if self.num_labels == 1 and scores.ndim > 1 else scores


def _read_activation(activation: ActivationFunction) -> Activation | Callable[[Any], Any]:
    if callable(activation):
        import_torch("Calling an activation function")
        return activation
    try:
        return Activation(activation)
    except ValueError:
        allowed = f"{', '.join(Activation)}, or a function of a tensor"
        raise InputError("unknown activation", got=repr(activation), allowed=allowed) from None


def _with_prompt(prompt: str, pair: Any) -> Any:
    """A pair with the prompt before its query; what is no pair of texts is left for the tokenizer to refuse."""
    return [prompt + pair[0], *pair[1:]] if isinstance(pair, list | tuple) and pair and isinstance(pair[0], str) else pair


@contextmanager
def _progress(pairs: int, wanted: bool | None) -> Iterator[Callable[[int], None] | None]:
    if wanted is None:
        wanted = logger.getEffectiveLevel() in (logging.INFO, logging.DEBUG)
    if not wanted:
        yield None
        return
    from rich.console import Console  # here, so that importing the runtime stays quick
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = ("Pairs", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task("", total=pairs)
        yield lambda done: bars.advance(task, done)
        bars.update(task, completed=pairs)  # pairs that are equal were computed once
