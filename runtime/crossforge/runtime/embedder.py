"""The embedder: the bundle of a bi-encoder, loaded, that turns texts into vectors and compares them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from crossforge.profiles import DeploymentProfile, Embedding, InputError, Manifest
from crossforge.runtime.activation import Floats
from crossforge.runtime.bundle import Bundle
from crossforge.runtime.hub import HubOptions
from crossforge.runtime.inputs import check_list, check_pair, check_text
from crossforge.runtime.opening import open_scorer
from crossforge.runtime.pair_scorer import PairScorer
from crossforge.runtime.precision import AUTO
from crossforge.runtime.scored import EmbeddedTexts, ScoredPairs, warn_of_losses
from crossforge.runtime.similarity import compare_all, compare_pairwise
from crossforge.runtime.timing import StageTimer, untimed


class Embedder(PairScorer):
    """Embeds texts with one session. Safe to call from several threads; close it, or use it as a context manager.

    :meth:`load` is the way to get one. The constructor takes the parts; its manifest has to be a bi-encoder's.
    """

    kind = "embedder"
    reads = "text"

    embedding: Embedding
    """What the manifest says of the vectors: how they are compared, and the prompts."""

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
        opened = Bundle.open(bundle, HubOptions(revision=revision))
        _embedding_of(opened.manifest, str(opened.path))
        return open_scorer(
            cls,
            opened,
            provider=provider,
            precision=precision,
            strict=strict,
            deployment=deployment,
            check_files=check_files,
            check_golden=check_golden,
            allow_host_code=allow_host_code,
            timed=timed,
        )

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
        warn_of_losses(embedded)
        return embedded.vectors

    def encode_queries(self, queries: Sequence[str]) -> Floats:
        """Embed queries: :meth:`encode` with the model's prompt for them, ``query``."""
        embedded = self.embed(queries, prompt=self.embedding.query_prompt)
        warn_of_losses(embedded)
        return embedded.vectors

    def encode_passages(self, passages: Sequence[str]) -> Floats:
        """Embed passages: :meth:`encode` with the model's prompt for them, ``document``, ``passage`` or ``corpus``."""
        embedded = self.embed(passages, prompt=self.embedding.passage_prompt)
        warn_of_losses(embedded)
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
        before = self._find_prompt(prompt_name, prompt)
        with self._timed("tokenize"):
            encoded = self.tokenizer.encode_texts(_put_before(before, texts))
        computed = self._compute(encoded, on_batch=on_batch)
        return EmbeddedTexts(
            vectors=computed.rows,
            truncated=encoded.truncated,
            unknown_tokens=encoded.unknown_tokens,
            mostly_unknown=encoded.mostly_unknown,
            token_counts=encoded.lengths,
            batches=computed.batches,
            padding_waste=computed.padding_waste,
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

    def _check_manifest(self) -> None:
        self.embedding = _embedding_of(self.manifest, "the manifest")

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
    check_list(pairs, "pairs", "(query, passage) pairs")
    queries: dict[str, int] = {}
    passages: dict[str, int] = {}
    for i, pair in enumerate(pairs):
        check_pair(pair, i)
        query, passage = pair
        check_text(query, f"the query of pair {i}")
        check_text(passage, f"passage {i}")
        queries.setdefault(query, len(queries))
        passages.setdefault(passage, len(passages))
    return queries, passages


def _joint_waste(a: EmbeddedTexts, b: EmbeddedTexts) -> float:
    tokens = [float(part.token_counts.sum()) for part in (a, b)]
    padded = [count / (1 - part.padding_waste) for count, part in zip(tokens, (a, b), strict=True)]
    return 1 - sum(tokens) / sum(padded) if sum(padded) else 0.0
