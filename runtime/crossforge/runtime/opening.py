"""From a bundle's folder to a reranker or an embedder that runs."""

from __future__ import annotations

import functools
import warnings
from typing import TypeVar

from crossforge.profiles import DeploymentProfile, ProviderFallbackWarning
from crossforge.runtime.bundle import TOKENIZER_NAME, Bundle
from crossforge.runtime.decision import decide
from crossforge.runtime.loading import open_session
from crossforge.runtime.machine import inspect_machine, usable_cores
from crossforge.runtime.pair_scorer import PairScorer
from crossforge.runtime.precision import AUTO
from crossforge.runtime.prompts import open_tokenizer
from crossforge.runtime.scoring import default_budget_tokens
from crossforge.runtime.timing import StageTimer
from crossforge.runtime.token_cache import TokenCache

S = TypeVar("S", bound=PairScorer)


def open_scorer(
    kind: type[S],
    bundle: Bundle,
    *,
    provider: str,
    precision: str,
    strict: bool,
    deployment: DeploymentProfile | None,
    instruction: str | None = None,
    check_files: bool,
    check_golden: bool,
    allow_host_code: bool,
    timed: StageTimer,
) -> S:
    """Choose a provider and a variant, and open them, as a scorer of the bundle's kind.

    See :meth:`Reranker.load` for the other arguments.

    Raises:
        BundleError: The bundle is damaged, or not understood.
        InputError: An unknown provider or precision, or an instruction that the model cannot take.
        MachineError: This machine cannot run it, or, with ``strict``, not as asked.
        EngineError: The model does not load, or fails its golden pairs.
        HubError: The hub refuses, or does not answer.

    Warns:
        ProviderFallbackWarning: Another provider runs than the one that was named; the caller's caller is told.
    """
    deployment = deployment or DeploymentProfile()
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
    bundle.provide((TOKENIZER_NAME,))
    tokenizer = functools.cache(
        lambda: open_tokenizer(
            bundle.path,
            bundle.manifest,
            instruction=instruction,
            cache=TokenCache(deployment.passage_cache_bytes) if deployment.passage_cache_bytes else None,
        )
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
        meanwhile=tokenizer,
    )
    session, choice = opened.session, opened.choice
    try:
        tokenizer()
    except BaseException:
        session.close()
        raise
    scorer = kind(
        session,
        tokenizer(),
        bundle.manifest,
        precision=choice.precision,
        budget_tokens=deployment.budget_tokens or default_budget_tokens(session.provider),
        profiles=opened.profiles,
        workers=deployment.workers or (usable_cores() if session.provider.is_cpu else 1),
        cost=deployment.cost_on(session.provider, choice.precision),
        provider_plan=plan,
        precision_choice=choice,
        timed=timed,
    )
    if check_golden:
        try:
            scorer.check_golden()
        except BaseException:
            scorer.close()
            raise
    return scorer
