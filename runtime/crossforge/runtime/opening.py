"""From a bundle's folder to the parts that a ``Reranker`` or an ``Embedder`` is made of."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from crossforge.profiles import CrossforgeError, DeploymentProfile, OptimizationProfile, ProviderFallbackWarning
from crossforge.runtime.bundle import TOKENIZER_NAME, Bundle
from crossforge.runtime.decision import decide
from crossforge.runtime.loading import open_session
from crossforge.runtime.machine import inspect_machine, usable_cores
from crossforge.runtime.precision import AUTO, PrecisionChoice
from crossforge.runtime.prompts import open_tokenizer
from crossforge.runtime.providers import ProviderPlan
from crossforge.runtime.scoring import default_budget_tokens
from crossforge.runtime.sessions import Session
from crossforge.runtime.token_cache import TokenCache
from crossforge.runtime.tokenization import PairTokenizer


@dataclass(frozen=True, kw_only=True)
class OpenedParts:
    """A bundle's session and tokenizer, and how they were chosen. Whoever asked for them owns the session."""

    session: Session
    tokenizer: PairTokenizer
    plan: ProviderPlan
    choice: PrecisionChoice
    profiles: tuple[OptimizationProfile, ...]
    """The shapes that the session takes; none if it takes any."""
    budget_tokens: int
    """Largest ``batch x sequence`` of a batch."""
    workers: int
    """Batches that run at the same time."""


def open_parts(
    bundle: Bundle,
    *,
    provider: str = AUTO,
    precision: str = AUTO,
    strict: bool = False,
    deployment: DeploymentProfile,
    instruction: str | None = None,
    check_files: bool = True,
    allow_host_code: bool = False,
) -> OpenedParts:
    """Choose a provider and a variant, and open them; see :meth:`Reranker.load` for the arguments.

    Raises:
        BundleError: The bundle is damaged, or not understood.
        InputError: An unknown provider or precision.
        MachineError: This machine cannot run it, or, with ``strict``, not as asked.
        EngineError: The model does not load.

    Warns:
        ProviderFallbackWarning: Another provider runs than the one that was named.
    """
    if precision == AUTO and deployment.precision is not None:
        precision = deployment.precision
    machine = inspect_machine()
    decision = decide(
        bundle,
        machine,
        provider=provider,
        precision=precision,
        order=deployment.providers,
        strict=strict,
        allow_host_code=allow_host_code,
    )
    plan = decision.plan
    if plan.is_fallback:
        warnings.warn(f"running on {plan.explain()}", ProviderFallbackWarning, stacklevel=3)
    manifest = bundle.manifest
    bundle.provide((TOKENIZER_NAME,))
    with ThreadPoolExecutor(1, thread_name_prefix="crossforge-load") as loader:  # beside the session, to start sooner
        tokenizer_loading = loader.submit(
            open_tokenizer,
            bundle.path,
            manifest,
            instruction=instruction,
            cache=TokenCache(deployment.passage_cache_bytes) if deployment.passage_cache_bytes else None,
        )
        opened = open_session(
            bundle,
            plan,
            precision,
            machine,
            engine=decision.engine,
            lanes=deployment.workers,
            strict=strict,
            check_files=check_files,
            allow_host_code=allow_host_code,
            gpu=deployment.gpu,
        )
    session = opened.session
    try:
        tokenizer = tokenizer_loading.result()
    except CrossforgeError:
        session.close()
        raise
    return OpenedParts(
        session=session,
        tokenizer=tokenizer,
        plan=plan,
        choice=opened.choice,
        profiles=opened.profiles,
        budget_tokens=deployment.budget_tokens or default_budget_tokens(session.provider),
        workers=deployment.workers or (usable_cores() if session.provider.is_cpu else 1),
    )
