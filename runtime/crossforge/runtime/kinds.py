"""The kinds of bundle: one is loaded as what it holds, a reranker or an embedder."""

from __future__ import annotations

from pathlib import Path

from crossforge.profiles import DeploymentProfile
from crossforge.runtime.bundle import Bundle
from crossforge.runtime.embedder import Embedder
from crossforge.runtime.pair_scorer import PairScorer
from crossforge.runtime.precision import AUTO
from crossforge.runtime.reranker import Reranker


def load_pair_scorer(
    bundle: str | Path | Bundle,
    *,
    provider: str = AUTO,
    precision: str = AUTO,
    strict: bool = False,
    deployment: DeploymentProfile | None = None,
    check_files: bool = True,
) -> PairScorer:
    """Load a bundle as what it holds; arguments and errors are those of :meth:`Reranker.load`."""
    bundle = Bundle.open(bundle)
    kind: type[Reranker] | type[Embedder] = Reranker if bundle.manifest.embedding is None else Embedder
    return kind.load(
        bundle, provider=provider, precision=precision, strict=strict, deployment=deployment, check_files=check_files
    )
