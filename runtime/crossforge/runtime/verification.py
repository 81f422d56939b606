"""Is a bundle still what it was? Every file's digest, and every variant's golden scores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from crossforge.profiles import ENGINE_OF, CrossforgeError, DeploymentProfile, ExecutionProvider, Precision
from crossforge.runtime.bundle import TOKENIZER_NAME, Bundle
from crossforge.runtime.decision import decide
from crossforge.runtime.kinds import load_pair_scorer
from crossforge.runtime.machine import inspect_machine
from crossforge.runtime.precision import AUTO
from crossforge.runtime.progress import Progress, Silent
from crossforge.runtime.templates import derive_template
from crossforge.runtime.tokenization import load_tokenizer


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
    deployed: VariantVerdict | None = None
    """What a deployment profile runs, where one was given."""

    @property
    def problems(self) -> tuple[str, ...]:
        """All that is wrong."""
        verdicts = (*self.variants, *((self.deployed,) if self.deployed else ()))
        found = (*self.damaged_files, self.template_problem, *(verdict.problem for verdict in verdicts))
        return tuple(problem for problem in found if problem is not None)

    @property
    def passed(self) -> bool:
        """Whether nothing at all is wrong."""
        return not self.problems


def verify_bundle(
    path: str | Path, *, deployment: DeploymentProfile | None = None, progress: Progress | None = None
) -> Verification:
    """Check a bundle on this machine: every variant on the processor, and what a deployment profile runs, as it runs it.

    Raises:
        BundleError: There is no bundle to check.
        HubError: The hub refuses, or does not answer.
        InputError: The deployment profile is for a variant that the bundle has not.
        ProviderUnavailableError: None of the deployment profile's providers runs here.
    """
    progress = progress or Silent()
    bundle = Bundle.open_whole(path)
    as_deployed = deployment and decide(
        bundle, inspect_machine(), precision=deployment.precision or AUTO, order=deployment.providers
    )
    with progress.stage("compare files") as stage:
        damage = tuple(problem for name in bundle.manifest.files if (problem := bundle.find_damage(name)))
        stage.note = f"{len(bundle.manifest.files)} files, {len(damage)} damaged"
    with progress.stage("compare the pair template") as stage:
        template_problem = _check_template(bundle)
        stage.note = template_problem or "as the tokenizer joins pairs"
    verdicts = []
    for precision in bundle.manifest.variants:
        with progress.stage(f"score golden pairs with {precision}") as stage:
            verdicts.append(_check_variant(bundle, precision))
            stage.note = _note(verdicts[-1])
    deployed = None
    if as_deployed:
        precision, provider = as_deployed.choice.precision, as_deployed.plan.chosen
        with progress.stage(f"score golden pairs as deployed, {precision} on {provider}") as stage:
            deployed = _check_variant(bundle, precision, provider, deployment)
            stage.note = _note(deployed)
    return Verification(damaged_files=damage, template_problem=template_problem, variants=tuple(verdicts), deployed=deployed)


def _note(verdict: VariantVerdict) -> str:
    return verdict.problem or f"largest difference {verdict.max_abs_diff:.2g} of {verdict.tolerance:.2g}"


def _check_template(bundle: Bundle) -> str | None:
    try:
        template = derive_template(load_tokenizer(bundle.path / TOKENIZER_NAME), bundle.manifest)
    except CrossforgeError as error:
        return str(error)
    return None if template == bundle.manifest.pair_template else "the tokenizer joins pairs in another way"


def _check_variant(
    bundle: Bundle,
    precision: Precision,
    provider: ExecutionProvider = ExecutionProvider.CPU,
    deployment: DeploymentProfile | None = None,
) -> VariantVerdict:
    tolerance = bundle.manifest.variants[precision].golden_tolerance
    provider = ENGINE_OF.get(precision, provider)
    try:
        scorer = load_pair_scorer(bundle, provider=provider, precision=precision, strict=True, deployment=deployment)
        with scorer:
            difference = scorer.check_golden()
    except CrossforgeError as error:
        return VariantVerdict(precision=precision, max_abs_diff=None, tolerance=tolerance, problem=str(error))
    return VariantVerdict(precision=precision, max_abs_diff=difference, tolerance=tolerance, problem=None)
