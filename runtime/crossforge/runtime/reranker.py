"""The reranker: a bundle, loaded, that scores and ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from crossforge.profiles import Activation, DeploymentProfile, InputError
from crossforge.runtime.activation import Floats, activate, parse_activation, relevance
from crossforge.runtime.bundle import Bundle
from crossforge.runtime.hub import HubOptions
from crossforge.runtime.opening import open_scorer
from crossforge.runtime.pair_scorer import PairScorer
from crossforge.runtime.precision import AUTO
from crossforge.runtime.ranking import RankedPassage, check_top_k, rank_passages
from crossforge.runtime.scored import ScoredPairs, warn_of_losses
from crossforge.runtime.timing import StageTimer, untimed
from crossforge.runtime.tokenization import EncodedPairs
from crossforge.runtime.windows import Chunking


class Reranker(PairScorer):
    """Scores pairs with one session. Safe to call from several threads; close it, or use it as a context manager.

    :meth:`load` is the way to get one. The constructor takes the parts, so that a test can pass a
    :class:`~crossforge.runtime.sessions.FakeSession`.
    """

    kind = "reranker"
    reads = "pair"

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
        instruction: str | None = None,
        check_files: bool = True,
        check_golden: bool = False,
        allow_host_code: bool = False,
        timed: StageTimer = untimed,
    ) -> Reranker:
        """Load a bundle.

        Args:
            bundle: The bundle's folder. Where no such path exists, ``owner/name`` or ``owner/name@revision`` on the hub;
                what the variant needs comes into the hub's cache.
            revision: The hub's branch, tag or commit.
            provider: ``auto``, ``tensorrt``, ``cuda``, ``native``, ``cpu`` or ``openvino``.
            precision: ``auto`` (the fastest variant that passed its gate and is exact here), or a variant's name.
            strict: Raise where another provider than the chosen one would run.
            deployment: How to run it. ``provider`` and ``precision``, where given, win over it.
            instruction: What a causal reranker is told to look for; None takes the bundle's own.
            check_files: Compare the sha256 of every file that is read with the manifest's.
            check_golden: Score the manifest's golden pairs, and raise if they come out differently.
            allow_host_code: Load TensorRT engines that embed code for the host, as version-compatible ones do. Such an
                engine can do whatever this process can: only for bundles that you trust.
            timed: Told when a stage of a call begins and ends.

        Raises:
            BundleError: The bundle is missing, damaged, or not understood.
            InputError: An unknown provider or precision; an instruction that the model cannot take; or a bi-encoder.
            MachineError: This machine cannot run it, or, with ``strict``, not as asked.
            EngineError: The model does not load, or fails its golden pairs.
            HubError: The hub refuses, or does not answer.

        Warns:
            StaleRevisionWarning: The hub does not answer, and what its cache has is loaded.
            ProviderFallbackWarning: Another provider runs than the one that was named.
        """
        opened = Bundle.open(bundle, HubOptions(revision=revision))
        opened.refuse_bi_encoder()
        return open_scorer(
            cls,
            opened,
            provider=provider,
            precision=precision,
            strict=strict,
            deployment=deployment,
            instruction=instruction,
            check_files=check_files,
            check_golden=check_golden,
            allow_host_code=allow_host_code,
            timed=timed,
        )

    def score(
        self,
        query: str,
        passages: Sequence[str],
        *,
        activation: Activation | str | None = None,
        chunk: Chunking | str | None = None,
    ) -> Floats:
        """Score passages against one query.

        Args:
            query: A text that is not blank.
            passages: Any number of texts.
            activation: Applied to the logits. None gives the raw relevance: the logit of a model with one label, the
                log-probability of the ranking label of a model with several.
            chunk: ``"max"`` or a :class:`~crossforge.runtime.windows.Chunking`: a passage that does not fit beside the
                query is split into overlapping windows, and the best one's score is its own. None cuts it.

        Returns:
            float32 [n], in the passages' order.

        Raises:
            InputError: A text cannot be used, or no label of the model ranks.
            NonFiniteLogitsError: The model answered NaN or infinity.

        Warns:
            TruncationWarning: Text was cut; :meth:`score_pairs` says which.
            UnknownTokensWarning: Most of a text is nothing that the model has a token for.
        """
        scored = self.score_encoded(self._encode(query, passages, chunk))
        warn_of_losses(scored)
        return self.relevance(scored.logits, activation=activation)

    def predict(self, pairs: Sequence[tuple[str, str]], *, activation: Activation | str | None = None) -> Floats:
        """Score pairs as ``sentence_transformers.CrossEncoder.predict`` does.

        Args:
            pairs: (query, passage) pairs of any queries.
            activation: Instead of the manifest's.

        Returns:
            float32 [n], or float32 [n, labels] if the model has several labels.

        Raises:
            InputError: An item is not a pair of texts that can be used.
            NonFiniteLogitsError: The model answered NaN or infinity.

        Warns:
            TruncationWarning: Text was cut; :meth:`score_pairs` says which.
            UnknownTokensWarning: Most of a text is nothing that the model has a token for.
        """
        scored = self.score_pairs(pairs)
        warn_of_losses(scored)
        scores = activate(scored.logits, parse_activation(activation, self.manifest.scoring.activation))
        return scores[:, 0] if scores.shape[1] == 1 else scores

    def rank(
        self, query: str, passages: Sequence[str], top_k: int | None = None, *, chunk: Chunking | str | None = None
    ) -> list[RankedPassage]:
        """Rank passages against one query, by raw relevance; ties go to the passage that came first.

        Args:
            query: A text that is not blank.
            passages: Any number of texts.
            top_k: Return only the best; None returns all.
            chunk: As for :meth:`score`.

        Returns:
            Best first, with the score that :meth:`score` gives, and the window that won where a passage was split.

        Raises:
            InputError: As :meth:`score`; or ``top_k`` is below 1.

        Warns:
            UnknownTokensWarning: As :meth:`score`. What was cut is in the result.
        """
        check_top_k(top_k)
        scored = self.score_encoded(self._encode(query, passages, chunk))
        warn_of_losses(scored, truncation=False)
        with self._timed("postprocess"):
            scores = self.relevance(scored.logits)
            return rank_passages(passages, scores, scored.truncated, windows=scored.windows, top_k=top_k)

    def score_pairs(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        chunk: Chunking | str | None = None,
        on_batch: Callable[[int], None] | None = None,
    ) -> ScoredPairs:
        """Score pairs and tell everything: all logits, what was cut, the batches.

        ``chunk`` is as for :meth:`score`: the logits of a pair are those of the window that ranks best. ``on_batch`` hears
        each batch's pairs, windows counted singly.
        """
        with self._timed("tokenize"):
            encoded = self.tokenizer.encode_pairs(pairs, chunk=chunk)
        return self.score_encoded(encoded, on_batch=on_batch)

    def score_encoded(self, pairs: EncodedPairs, *, on_batch: Callable[[int], None] | None = None) -> ScoredPairs:
        """Score pairs that this reranker's tokenizer encoded; see :meth:`score_pairs`."""
        ranking_label = None if pairs.windows is None else self.ranking_label
        computed = self._compute(pairs, on_batch=on_batch)
        with self._timed("postprocess"):
            return ScoredPairs.of(
                pairs,
                computed.rows,
                batches=computed.batches,
                padding_waste=computed.padding_waste,
                ranking_label=ranking_label,
            )

    @property
    def ranking_label(self) -> int:
        """The label whose score ranks.

        Raises:
            InputError: No label of the model ranks.
        """
        label = self.manifest.scoring.ranking_label
        if label is None:
            raise InputError(
                "this model classifies pairs and has no label that ranks",
                got=", ".join(self.manifest.scoring.labels),
                fix="Use predict(), or export it again with --ranking-label.",
            )
        return label

    def relevance(self, logits: Floats, *, activation: Activation | str | None = None) -> Floats:
        """The ranking score of logits, float32 [n, labels] -> float32 [n]; see :meth:`score`.

        Raises:
            InputError: No label of the model ranks.
        """
        label = self.ranking_label
        if activation is None:
            return relevance(logits, label)
        return activate(logits, parse_activation(activation, self.manifest.scoring.activation))[:, label]

    def _encode(self, query: str, passages: Sequence[str], chunk: Chunking | str | None) -> EncodedPairs:
        with self._timed("tokenize"):
            return self.tokenizer.encode(query, passages, chunk=chunk)
