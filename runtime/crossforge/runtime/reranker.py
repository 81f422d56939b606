"""The reranker: a bundle, loaded, that scores and ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from crossforge.profiles import (
    Activation,
    ClosedError,
    CostModel,
    CrossforgeError,
    DeploymentProfile,
    InputError,
    Manifest,
    OptimizationProfile,
    Precision,
)
from crossforge.runtime.activation import Floats, activate, parse_activation, relevance
from crossforge.runtime.batching import BatchPlan, padding_waste
from crossforge.runtime.bundle import Bundle
from crossforge.runtime.distinct import find_distinct
from crossforge.runtime.golden import check_golden_pairs
from crossforge.runtime.hub import HubOptions
from crossforge.runtime.opening import open_parts
from crossforge.runtime.precision import AUTO, PrecisionChoice
from crossforge.runtime.providers import ProviderPlan
from crossforge.runtime.ranking import RankedPassage, check_top_k, rank_passages
from crossforge.runtime.scored import ScoredPairs, check_finite, warn_of_losses
from crossforge.runtime.scoring import CPU_BUDGET_TOKENS, compute_logits
from crossforge.runtime.sessions import Session
from crossforge.runtime.timing import StageTimer, untimed
from crossforge.runtime.tokenization import EncodedPairs, PairTokenizer
from crossforge.runtime.windows import Chunking


class Reranker:
    """Scores pairs with one session. Safe to call from several threads; close it, or use it as a context manager.

    :meth:`load` is the way to get one. The constructor takes the parts, so that a test can pass a
    :class:`~crossforge.runtime.sessions.FakeSession`.

    Args:
        session: Runs batches. The reranker owns it and closes it.
        tokenizer: Encodes pairs for it.
        manifest: Says what the logits mean.
        precision: The variant that the session runs.
        budget_tokens: Largest ``batch x sequence`` of a batch.
        profiles: The shapes that the session takes; none if it takes any.
        workers: Batches that run at the same time.
        cost: Predicted times of its batches, for cuts of the least time.
        provider_plan: How the provider was chosen, where it was.
        precision_choice: How the variant was chosen, where it was.
        timed: Told when a stage of a call begins and ends.
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
        cost: CostModel | None = None,
        provider_plan: ProviderPlan | None = None,
        precision_choice: PrecisionChoice | None = None,
        timed: StageTimer = untimed,
    ) -> None:
        self.session = session
        self.tokenizer = tokenizer
        self.manifest = manifest
        self.precision = precision
        self.budget_tokens = budget_tokens
        self.profiles = tuple(profiles)
        self.workers = workers
        self.cost = cost
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
        bundle = Bundle.open(bundle, HubOptions(revision=revision))
        bundle.refuse_bi_encoder()
        deployment = deployment or DeploymentProfile()
        parts = open_parts(
            bundle,
            provider=provider,
            precision=precision,
            strict=strict,
            deployment=deployment,
            instruction=instruction,
            check_files=check_files,
            allow_host_code=allow_host_code,
        )
        reranker = cls(
            parts.session,
            parts.tokenizer,
            bundle.manifest,
            precision=parts.choice.precision,
            budget_tokens=parts.budget_tokens,
            profiles=parts.profiles,
            workers=parts.workers,
            cost=deployment.cost_on(parts.session.provider, parts.choice.precision),
            provider_plan=parts.plan,
            precision_choice=parts.choice,
            timed=timed,
        )
        if check_golden:
            try:
                reranker.check_golden()
            except CrossforgeError:
                reranker.close()
                raise
        return reranker

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
        if self._closed:
            raise ClosedError("the reranker is closed")
        ranking_label = None if pairs.windows is None else self.ranking_label
        with self._timed("plan"):
            distinct = find_distinct(pairs)
        logits, plans = self.compute_logits(
            distinct.pairs, workers=self.workers, cost=self.cost, executor=self._pool, on_batch=on_batch
        )
        with self._timed("postprocess"):
            logits = logits[distinct.position]
            check_finite(logits, self.precision)
            waste = padding_waste(plans, distinct.pairs.lengths)
            return ScoredPairs.of(pairs, logits, batches=len(plans), padding_waste=waste, ranking_label=ranking_label)

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

    def compute_logits(
        self,
        pairs: EncodedPairs,
        *,
        budget_tokens: int | None = None,
        workers: int = 1,
        cost: CostModel | None = None,
        executor: Executor | None = None,
        on_batch: Callable[[int], None] | None = None,
    ) -> tuple[Floats, list[BatchPlan]]:
        """Run encoded pairs through the session as they are, unchecked: for whoever has workers of their own.

        Args:
            pairs: What to compute, by this reranker's tokenizer.
            budget_tokens: Largest ``batch x sequence`` of a batch; None takes the reranker's.
            workers: Batches that run at the same time, in ``executor``.
            cost: Predicted times of batches, for cuts of the least time.
            executor: Runs batches; None runs them one after another on the calling thread.
            on_batch: Told the number of pairs after each batch.

        Returns:
            float32 [n, labels] in the order of ``pairs``, and the batches that it took.

        Raises:
            EngineError: The engine failed, or answered in another shape.
        """
        return compute_logits(
            self.session,
            pairs,
            template=self.manifest.pair_template,
            pad_token_id=self.manifest.pad_token_id,
            labels=len(self.manifest.scoring.labels),
            budget_tokens=budget_tokens or self.budget_tokens,
            profiles=self.profiles,
            workers=workers,
            cost=cost,
            executor=executor,
            on_batch=on_batch,
            timed=self._timed,
        )

    def check_golden(self) -> float:
        """Score the manifest's golden pairs.

        Returns:
            The largest difference to the reference's logits.

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

    def __enter__(self) -> Reranker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _encode(self, query: str, passages: Sequence[str], chunk: Chunking | str | None) -> EncodedPairs:
        with self._timed("tokenize"):
            return self.tokenizer.encode(query, passages, chunk=chunk)
