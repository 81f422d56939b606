"""The embedder: the bundle of a bi-encoder, loaded, that turns texts into vectors and compares them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from crossforge.profiles import (
    ClosedError,
    DeploymentProfile,
    Embedding,
    InputError,
    Manifest,
    NonFiniteLogitsError,
    OptimizationProfile,
    Precision,
    TruncationWarning,
    UnknownTokensWarning,
)
from crossforge.runtime.activation import Floats
from crossforge.runtime.batching import padding_waste
from crossforge.runtime.bundle import Bundle
from crossforge.runtime.distinct import find_distinct
from crossforge.runtime.golden import check_golden_pairs
from crossforge.runtime.hub import HubOptions
from crossforge.runtime.opening import open_parts
from crossforge.runtime.precision import AUTO, PrecisionChoice
from crossforge.runtime.providers import ProviderPlan
from crossforge.runtime.scored import ScoredPairs
from crossforge.runtime.scoring import CPU_BUDGET_TOKENS, compute_logits
from crossforge.runtime.sessions import Session
from crossforge.runtime.similarity import compare_all, compare_pairwise
from crossforge.runtime.timing import StageTimer, untimed
from crossforge.runtime.tokenization import PairTokenizer


@dataclass(frozen=True, kw_only=True)
class EmbeddedTexts:
    """Embeddings, with what happened on the way to them."""

    vectors: Floats
    """float32 [n, dimension], in the texts' order."""
    truncated: NDArray[np.bool_]
    """Texts of which the model did not see all: bool [n]."""
    unknown_tokens: NDArray[np.int32]
    """Tokens of each text that stand for something the tokenizer has no token for: int32 [n]."""
    mostly_unknown: NDArray[np.bool_]
    """Texts that are mostly words that the tokenizer has no token for, symbols such as emoji aside: bool [n]."""
    token_counts: NDArray[np.int32]
    """Tokens of each text, special tokens and prompt included: int32 [n]."""
    batches: int
    """It took so many for the texts that differ; equal texts are computed once."""
    padding_waste: float
    """Share of the computed tokens that were padding, 0.0 to 1.0."""


class Embedder:
    """Embeds texts with one session. Safe to call from several threads; close it, or use it as a context manager.

    :meth:`load` is the way to get one.

    Args:
        session: Runs batches. The embedder owns it and closes it.
        tokenizer: Encodes texts for it.
        manifest: Of a bi-encoder: says how vectors are compared, and has the prompts.
        precision: The variant that the session runs.
        budget_tokens: Largest ``batch x sequence`` of a batch.
        profiles: The shapes that the session takes; none if it takes any.
        workers: Batches that run at the same time.
        provider_plan: How the provider was chosen, where it was.
        precision_choice: How the variant was chosen, where it was.
        timed: Told when a stage of a call begins and ends.

    Raises:
        InputError: The manifest is a cross-encoder's.
    """

    def __init__(
        self,
        session: Session,
        tokenizer: PairTokenizer,
        manifest: Manifest,
        *,
        precision: Precision = Precision.FP32,
        budget_tokens: int = CPU_BUDGET_TOKENS,
        profiles: Sequence[OptimizationProfile] = (),
        workers: int = 1,
        provider_plan: ProviderPlan | None = None,
        precision_choice: PrecisionChoice | None = None,
        timed: StageTimer = untimed,
    ) -> None:
        self.embedding = _embedding_of(manifest, "the manifest")
        self.session = session
        self.tokenizer = tokenizer
        self.manifest = manifest
        self.precision = precision
        self.budget_tokens = budget_tokens
        self.profiles = tuple(profiles)
        self.workers = workers
        self.provider_plan = provider_plan
        self.precision_choice = precision_choice
        self._timed = timed
        self._closed = False
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="crossforge") if workers > 1 else None

    @classmethod
    def load(
        cls,
        bundle: str | Path | Bundle,
        *,
        revision: str | None = None,
        provider: str = AUTO,
        precision: str = AUTO,
        strict: bool = False,
        deployment: DeploymentProfile | None = None,
        check_files: bool = True,
        check_golden: bool = False,
        allow_host_code: bool = False,
        timed: StageTimer = untimed,
    ) -> Embedder:
        """Load the bundle of a bi-encoder; arguments, errors and warnings are those of :meth:`Reranker.load`.

        Raises:
            InputError: Also where the bundle holds a cross-encoder.
        """
        bundle = Bundle.open(bundle, HubOptions(revision=revision))
        _embedding_of(bundle.manifest, str(bundle.path))
        parts = open_parts(
            bundle,
            provider=provider,
            precision=precision,
            strict=strict,
            deployment=deployment or DeploymentProfile(),
            check_files=check_files,
            allow_host_code=allow_host_code,
        )
        embedder = cls(
            parts.session,
            parts.tokenizer,
            bundle.manifest,
            precision=parts.choice.precision,
            budget_tokens=parts.budget_tokens,
            profiles=parts.profiles,
            workers=parts.workers,
            provider_plan=parts.plan,
            precision_choice=parts.choice,
            timed=timed,
        )
        if check_golden:
            try:
                embedder.check_golden()
            except Exception:
                embedder.close()
                raise
        return embedder

    @property
    def dimension(self) -> int:
        """Columns of an embedding."""
        return self.embedding.dimension

    def encode(self, texts: Sequence[str], *, prompt_name: str | None = None, prompt: str | None = None) -> Floats:
        """Embed texts, as ``sentence_transformers.SentenceTransformer.encode`` does.

        Args:
            texts: Any number of texts; empty ones are allowed.
            prompt_name: The name of one of the model's prompts, which is put before every text. None takes the model's
                default prompt, if it has one.
            prompt: A text to put before every text, instead of a named one.

        Returns:
            float32 [n, dimension], in the texts' order.

        Raises:
            InputError: A text or a prompt cannot be used.
            NonFiniteLogitsError: The model answered NaN or infinity.

        Warns:
            TruncationWarning: A text was cut; :meth:`embed` says which.
            UnknownTokensWarning: Most of a text is nothing that the model has a token for.
        """
        embedded = self.embed(texts, prompt_name=prompt_name, prompt=prompt)
        _warn_of_losses(embedded)
        return embedded.vectors

    def encode_queries(self, queries: Sequence[str]) -> Floats:
        """Embed queries: :meth:`encode` with the model's prompt for them, ``query``."""
        embedded = self.embed(queries, prompt=self.embedding.query_prompt)
        _warn_of_losses(embedded)
        return embedded.vectors

    def encode_passages(self, passages: Sequence[str]) -> Floats:
        """Embed passages: :meth:`encode` with the model's prompt for them, ``document``, ``passage`` or ``corpus``."""
        embedded = self.embed(passages, prompt=self.embedding.passage_prompt)
        _warn_of_losses(embedded)
        return embedded.vectors

    def embed(
        self,
        texts: Sequence[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        on_batch: Callable[[int], None] | None = None,
    ) -> EmbeddedTexts:
        """Embed texts and tell everything: what was cut, what was not understood, the batches.

        ``on_batch`` hears each batch's number of texts; see :meth:`encode` for the rest.
        """
        if self._closed:
            raise ClosedError("the embedder is closed")
        before = self._find_prompt(prompt_name, prompt)
        with self._timed("tokenize"):
            encoded = self.tokenizer.encode_texts(_put_before(before, texts))
        with self._timed("plan"):
            distinct = find_distinct(encoded)
        vectors, plans = compute_logits(
            self.session,
            distinct.pairs,
            template=self.manifest.pair_template,
            pad_token_id=self.manifest.pad_token_id,
            labels=self.embedding.dimension,
            budget_tokens=self.budget_tokens,
            profiles=self.profiles,
            workers=self.workers,
            executor=self._pool,
            on_batch=on_batch,
            timed=self._timed,
        )
        with self._timed("postprocess"):
            vectors = vectors[distinct.position]
            _check_finite(vectors, self.precision)
            return EmbeddedTexts(
                vectors=vectors,
                truncated=encoded.truncated,
                unknown_tokens=encoded.unknown_tokens,
                mostly_unknown=encoded.mostly_unknown,
                token_counts=encoded.lengths,
                batches=len(plans),
                padding_waste=padding_waste(plans, distinct.pairs.lengths),
            )

    def similarity(self, a: Floats, b: Floats) -> Floats:
        """Compare embeddings by the model's own similarity; larger is closer, so distances are negative.

        Args:
            a: float32 [n, dimension].
            b: float32 [m, dimension].

        Returns:
            float32 [n, m].

        Raises:
            InputError: An argument is not such an array.
        """
        return compare_all(self._check_vectors(a, "a"), self._check_vectors(b, "b"), self.embedding.similarity)

    def score_pairs(self, pairs: Sequence[tuple[str, str]]) -> ScoredPairs:
        """Score (query, passage) pairs by the similarity of their embeddings, each different text embedded once.

        It is what a bundle's parity figures and golden pairs are of, in the form that :meth:`Reranker.score_pairs` has: one
        label, the similarity. ``truncated`` says of which pairs a text was cut.

        Raises:
            InputError: An item is not a pair of texts.
            NonFiniteLogitsError: The model answered NaN or infinity.
        """
        queries, passages = _split_pairs(pairs)
        left = self.embed(list(queries), prompt=self.embedding.query_prompt)
        right = self.embed(list(passages), prompt=self.embedding.passage_prompt)
        q = np.fromiter((queries[query] for query, _ in pairs), dtype=np.intp, count=len(pairs))
        p = np.fromiter((passages[passage] for _, passage in pairs), dtype=np.intp, count=len(pairs))
        return ScoredPairs(
            logits=compare_pairwise(left.vectors[q], right.vectors[p], self.embedding.similarity)[:, None],
            truncated=left.truncated[q] | right.truncated[p],
            query_truncated=left.truncated[q],
            unknown_tokens=left.unknown_tokens[q] + right.unknown_tokens[p],
            mostly_unknown=left.mostly_unknown[q] | right.mostly_unknown[p],
            token_counts=left.token_counts[q] + right.token_counts[p],
            batches=left.batches + right.batches,
            padding_waste=_joint_waste(left, right),
        )

    def relevance(self, logits: Floats) -> Floats:
        """What ranks of :meth:`score_pairs`' logits: float32 [n, 1] -> float32 [n]."""
        return logits[:, 0]

    def check_golden(self) -> float:
        """Score the manifest's golden pairs.

        Returns:
            The largest difference to the similarities that the original model gave.

        Raises:
            EngineError: It is beyond the variant's tolerance.
        """
        return check_golden_pairs(self.manifest, self.precision, lambda pairs: self.score_pairs(pairs).logits)

    def close(self) -> None:
        """Free the session and its threads."""
        self._closed = True
        if self._pool is not None:
            self._pool.shutdown()
        self.session.close()

    def __enter__(self) -> Embedder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _find_prompt(self, name: str | None, prompt: str | None) -> str:
        if name is not None and prompt is not None:
            raise InputError(
                "two prompts are named", got=f"prompt_name {name!r} and prompt {prompt!r}", allowed="one of them"
            )
        if prompt is not None:
            if not isinstance(prompt, str):
                raise InputError("the prompt is not a string", got=type(prompt).__name__, allowed="str")
            return prompt
        name = self.embedding.default_prompt if name is None else name
        if name is None:
            return ""
        if name not in self.embedding.prompts:
            known = ", ".join(self.embedding.prompts) or "none: the model has no prompts"
            raise InputError("the model has no such prompt", got=repr(name), allowed=known)
        return self.embedding.prompts[name]

    def _check_vectors(self, vectors: Floats, name: str) -> Floats:
        array = np.asarray(vectors, dtype=np.float32)
        if array.ndim != 2 or array.shape[1] != self.dimension:
            raise InputError(f"{name} does not hold embeddings", got=list(array.shape), allowed=f"[n, {self.dimension}]")
        return array


def _embedding_of(manifest: Manifest, where: str) -> Embedding:
    if manifest.embedding is None:
        raise InputError(
            f"{where} is of a cross-encoder, which scores pairs and embeds nothing",
            allowed="the bundle of a bi-encoder",
            fix="Use crossforge.runtime.Reranker.load(), or export a bi-encoder.",
        )
    return manifest.embedding


def _put_before(prompt: str, texts: Sequence[str]) -> Sequence[str]:
    if not prompt or isinstance(texts, str | bytes) or not isinstance(texts, Sequence):
        return texts  # refused, or left as it is, where texts are checked
    return [prompt + text if isinstance(text, str) else text for text in texts]


def _split_pairs(pairs: Sequence[tuple[str, str]]) -> tuple[dict[str, int], dict[str, int]]:
    """The different queries and the different passages, each with its position."""
    if isinstance(pairs, str | bytes) or not isinstance(pairs, Sequence):
        raise InputError("pairs must be a list", got=type(pairs).__name__, allowed="a list of (query, passage) pairs")
    queries: dict[str, int] = {}
    passages: dict[str, int] = {}
    for i, pair in enumerate(pairs):
        if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise InputError(f"pair {i} is not a pair", got=f"{pair!r:.60}", allowed="(query, passage)")
        queries.setdefault(pair[0], len(queries))
        passages.setdefault(pair[1], len(passages))
    return queries, passages


def _joint_waste(a: EmbeddedTexts, b: EmbeddedTexts) -> float:
    tokens = [float(part.token_counts.sum()) for part in (a, b)]
    padded = [count / (1 - part.padding_waste) for count, part in zip(tokens, (a, b), strict=True)]
    return 1 - sum(tokens) / sum(padded) if sum(padded) else 0.0


def _check_finite(vectors: Floats, precision: Precision) -> None:
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        bad = np.flatnonzero(~finite)
        raise NonFiniteLogitsError(
            f"the {precision} variant answered NaN or infinity for {len(bad)} of {len(vectors)} texts",
            got=f"text {bad[0]} first",
            fix="Use the fp32 variant; if it does this too, the checkpoint itself is broken.",
        )


def _warn_of_losses(embedded: EmbeddedTexts) -> None:
    """Warn the caller's caller that the model did not see a text, or could not read it."""
    if count := int(embedded.truncated.sum()):
        warnings.warn(
            f"{count} of {len(embedded.truncated)} texts were too long for the model and were cut; embed() says which",
            TruncationWarning,
            stacklevel=3,
        )
    if count := int(embedded.mostly_unknown.sum()):
        warnings.warn(
            f"{count} of {len(embedded.mostly_unknown)} texts are mostly text that the model has no token for, so their "
            "embeddings mean little; embed() says which",
            UnknownTokensWarning,
            stacklevel=3,
        )
