"""What a tuner may choose from: settings of a deployment, and the limits on what they may cost in quality. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from crossforge.profiles import CostModel, DeploymentProfile, ExecutionProvider, InputError, ParityReport, Precision

_CPU_BUDGETS = (128, 256, 384, 512, 1024, 2048)
_GPU_BUDGETS = (4096, 8192, 16_384, 32_768)
_GPU_WORKERS = (1, 2)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One way to run a bundle."""

    provider: ExecutionProvider
    precision: Precision
    workers: int
    budget_tokens: int

    def deployment(self, cost: CostModel | None = None) -> DeploymentProfile:
        """The deployment profile that says this, with a cost model measured under it."""
        return DeploymentProfile(
            precision=self.precision,
            providers=(self.provider,),
            budget_tokens=self.budget_tokens,
            workers=self.workers,
            cost=cost,
        )

    def __str__(self) -> str:
        workers = "1 worker" if self.workers == 1 else f"{self.workers} workers"
        return f"{self.precision} on {self.provider}, {workers}, {self.budget_tokens:,} tokens a batch"


@dataclass(frozen=True, kw_only=True)
class QualityLimits:
    """What a variant may lose, by the parity figures of the manifest. None sets no limit beyond the bundle's own gate."""

    max_ndcg_loss: float | None = None
    """Loss of nDCG@10 against the variant's reference."""
    min_kendall_tau: float | None = None
    """Agreement with the reference's order."""

    def __post_init__(self) -> None:
        if self.max_ndcg_loss is not None and not 0 <= self.max_ndcg_loss <= 1:
            raise InputError("the limit on the loss of nDCG is no share", got=self.max_ndcg_loss, allowed="0 to 1")
        if self.min_kendall_tau is not None and not -1 <= self.min_kendall_tau <= 1:
            raise InputError("the limit on Kendall tau is no correlation", got=self.min_kendall_tau, allowed="-1 to 1")

    def why_not(self, parity: ParityReport) -> str | None:
        """The reason for which a variant may not be chosen; None if it may."""
        if not parity.passed:
            return "it failed its parity gate when the bundle was made"
        tau, loss = parity.kendall_tau, parity.ndcg_loss
        if self.min_kendall_tau is not None and (tau is None or tau < self.min_kendall_tau):
            return f"its Kendall tau is {'unknown' if tau is None else f'{tau:.4f}'}, below {self.min_kendall_tau:g}"
        if self.max_ndcg_loss is None or tau == 1.0:  # the same order loses nothing
            return None
        if loss is None:
            return "its nDCG was not measured: make the bundle with --verification FILE --qrels FILE"
        return f"it loses {loss:.4f} of nDCG@10, above {self.max_ndcg_loss:g}" if loss > self.max_ndcg_loss else None


def candidate_settings(
    variants: Mapping[ExecutionProvider, Sequence[Precision]], *, cores: int, also: Iterable[Setting] = ()
) -> tuple[Setting, ...]:
    """Every setting worth a measurement.

    On the processor a worker is a thread with a batch of its own; operators are never split, so there are no threads to
    choose. Every provider is searched over the workers and budgets that suit what it runs on.

    Args:
        variants: What may run on each provider.
        cores: Cores that this process may use.
        also: Settings that must be among them.
    """
    settings = dict.fromkeys(also)
    for provider, precisions in variants.items():
        workers = sorted({1, max(1, cores // 2), cores}, reverse=True) if provider.is_cpu else _GPU_WORKERS
        if provider is ExecutionProvider.OPENVINO:  # each number of workers is a model compiled anew, and held
            workers = [cores]
        for precision in precisions:
            for count in workers:
                for budget in _CPU_BUDGETS if provider.is_cpu else _GPU_BUDGETS:
                    settings[Setting(provider=provider, precision=precision, workers=count, budget_tokens=budget)] = None
    return tuple(settings)
