"""Whatever scores pairs, a reranker or an embedder: a bundle, loaded, with the threads that run its batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import ClassVar, Self

from crossforge.profiles import ClosedError, CostModel, EngineError, Manifest, OptimizationProfile, Precision
from crossforge.runtime.activation import Floats
from crossforge.runtime.batching import BatchPlan, padding_waste
from crossforge.runtime.distinct import find_distinct
from crossforge.runtime.golden import check_golden_pairs
from crossforge.runtime.precision import PrecisionChoice
from crossforge.runtime.providers import ProviderPlan
from crossforge.runtime.scored import ScoredPairs, check_finite
from crossforge.runtime.scoring import CPU_BUDGET_TOKENS, compute_logits
from crossforge.runtime.sessions import Session
from crossforge.runtime.timing import StageTimer, untimed
from crossforge.runtime.tokenization import EncodedPairs, PairTokenizer


@dataclass(frozen=True, kw_only=True)
class Computed:
    """What a model answered to pairs or texts, and what it took."""

    rows: Floats
    """Logits or vectors in the order that was asked: float32 [n, columns]."""
    batches: int
    padding_waste: float
    """Share of the computed tokens that were padding, 0.0 to 1.0."""


class PairScorer(ABC):
    """A session and a tokenizer, and how they were chosen.

    Safe to call from several threads. A call that meets :meth:`close` gives its answer or raises ClosedError.
    """

    kind: ClassVar[str]
    """What an error calls it."""
    reads: ClassVar[str]
    """What an error calls one of the inputs that its model reads."""

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
        """Take the parts.

        Args:
            session: Runs batches. It is owned from here on, and closed at the end.
            tokenizer: Encodes pairs or texts for it.
            manifest: Says what the model's answers mean.
            precision: The variant that the session runs.
            budget_tokens: Largest ``batch x sequence`` of a batch.
            profiles: The shapes that the session takes; none if it takes any.
            workers: Batches that run at the same time.
            cost: Predicted times of its batches, for cuts of the least time.
            provider_plan: How the provider was chosen, where it was.
            precision_choice: How the variant was chosen, where it was.
            timed: Told when a stage of a call begins and ends.

        Raises:
            InputError: The manifest is of another kind of model.
        """
        self.manifest = manifest
        self._check_manifest()
        self.session = session
        self.tokenizer = tokenizer
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

    @abstractmethod
    def score_pairs(self, pairs: Sequence[tuple[str, str]]) -> ScoredPairs:
        """Score (query, passage) pairs and tell everything: logits, what was cut, the batches."""

    @abstractmethod
    def relevance(self, logits: Floats) -> Floats:
        """What ranks of :meth:`score_pairs`' logits: float32 [n, labels] -> float32 [n]."""

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
        """Run what is encoded through the session as it is, unchecked: for whoever has workers of their own.

        Args:
            pairs: What to compute, by the tokenizer of this object.
            budget_tokens: Largest ``batch x sequence`` of a batch; None takes the object's own.
            workers: Batches that run at the same time, in ``executor``.
            cost: Predicted times of batches, for cuts of the least time.
            executor: Runs batches; None runs them one after another on the calling thread.
            on_batch: Told the number of pairs after each batch.

        Returns:
            float32 [n, labels], of a bi-encoder [n, dimension], in the order of ``pairs``, and the batches that it took.

        Raises:
            EngineError: The engine failed, or answered in another shape.
            ClosedError: :meth:`close` was called.
        """
        closed = ClosedError(f"the {self.kind} is closed")
        if self._closed:
            raise closed
        try:
            return compute_logits(
                self.session,
                pairs,
                template=self.manifest.pair_template,
                pad_token_id=self.manifest.pad_token_id,
                labels=self.manifest.output_columns,
                budget_tokens=self.budget_tokens if budget_tokens is None else budget_tokens,
                profiles=self.profiles,
                workers=workers,
                cost=cost,
                executor=executor,
                on_batch=on_batch,
                timed=self._timed,
            )
        except (EngineError, RuntimeError) as error:  # a pool that was shut down raises RuntimeError
            if self._closed:
                raise closed from error
            raise

    def check_golden(self) -> float:
        """Score the manifest's golden pairs.

        Returns:
            The largest difference to what the original model gave: logits, or a bi-encoder's similarities.

        Raises:
            EngineError: It is beyond the variant's tolerance.
        """
        return check_golden_pairs(self.manifest, self.precision, lambda pairs: self.score_pairs(pairs).logits)

    def close(self) -> None:
        """Free the session and its threads. May be called while calls run on other threads, and twice."""
        self._closed = True
        if self._pool is not None:
            self._pool.shutdown()
        self.session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _check_manifest(self) -> None:  # noqa: B027 - not every subclass cares
        """Refuse the manifest of another kind of model."""

    def _compute(self, asked: EncodedPairs, *, on_batch: Callable[[int], None] | None = None) -> Computed:
        """Compute each different pair or text once, on the workers of this object.

        Raises:
            NonFiniteLogitsError: The model answered NaN or infinity.
        """
        with self._timed("plan"):
            distinct = find_distinct(asked)
        rows, plans = self.compute_logits(
            distinct.pairs, workers=self.workers, cost=self.cost, executor=self._pool, on_batch=on_batch
        )
        with self._timed("postprocess"):
            rows = rows[distinct.position]
            check_finite(rows, self.precision, item=self.reads)
            waste = padding_waste(plans, distinct.pairs.lengths)
            return Computed(rows=rows, batches=len(plans), padding_waste=waste)
