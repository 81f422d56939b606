"""Is a bundle still what it was? Every file's digest, and every variant's golden scores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from crossforge.profiles import ENGINE_OF, CrossforgeError, ExecutionProvider, Precision
from crossforge.runtime.bundle import TOKENIZER_NAME, Bundle
from crossforge.runtime.progress import Progress, Silent
from crossforge.runtime.reranker import Reranker
from crossforge.runtime.tokenization import derive_pair_template, load_tokenizer


@dataclass(frozen=True, kw_only=True)
class VariantVerdict:
    """Whether a variant reproduces the golden scores here."""

    precision: Precision
    max_abs_diff: float | None
    """Largest difference to a golden logit; None if it could not be measured."""
    tolerance: float
    problem: str | None


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The whole verdict."""

    damaged_files: tuple[str, ...]
    """What is wrong with which file."""
    template_problem: str | None
    variants: tuple[VariantVerdict, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing at all is wrong."""
        return not self.damaged_files and self.template_problem is None and all(v.problem is None for v in self.variants)


def verify_bundle(path: str | Path, *, progress: Progress | None = None) -> Verification:
    """Check a bundle on this machine.

    Raises:
        BundleError: There is no bundle to check.
    """
    progress = progress or Silent()
    bundle = Bundle.open(path)
    with progress.stage("compare files") as stage:
        damage = tuple(problem for name in bundle.manifest.files if (problem := bundle.find_damage(name)))
        stage.note = f"{len(bundle.manifest.files)} files, {len(damage)} damaged"
    with progress.stage("compare the pair template") as stage:
        template_problem = _check_template(bundle)
        stage.note = template_problem or "as the tokenizer joins pairs"
    verdicts = []
    for precision in bundle.manifest.variants:
        with progress.stage(f"score golden pairs with {precision}") as stage:
            verdict = _check_variant(bundle, precision)
            verdicts.append(verdict)
            stage.note = verdict.problem or f"largest difference {verdict.max_abs_diff:.2g} of {verdict.tolerance:.2g}"
    return Verification(damaged_files=damage, template_problem=template_problem, variants=tuple(verdicts))


def _check_template(bundle: Bundle) -> str | None:
    try:
        template = derive_pair_template(load_tokenizer(bundle.path / TOKENIZER_NAME))
    except CrossforgeError as error:
        return str(error)
    return None if template == bundle.manifest.pair_template else "the tokenizer joins pairs in another way"


def _check_variant(bundle: Bundle, precision: Precision) -> VariantVerdict:
    tolerance = bundle.manifest.variants[precision].golden_tolerance
    provider = ENGINE_OF.get(precision, ExecutionProvider.CPU)
    try:
        with Reranker.load(bundle, provider=provider, precision=precision, strict=True) as reranker:
            difference = reranker.check_golden()
    except CrossforgeError as error:
        return VariantVerdict(precision=precision, max_abs_diff=None, tolerance=tolerance, problem=str(error))
    return VariantVerdict(precision=precision, max_abs_diff=difference, tolerance=tolerance, problem=None)
