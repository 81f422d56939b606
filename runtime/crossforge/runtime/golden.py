"""The golden pairs of a manifest: does what runs here answer what the checkpoint answered?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from crossforge.profiles import EngineError, Manifest, Precision
from crossforge.runtime.activation import Floats


def check_golden_pairs(
    manifest: Manifest, precision: Precision, score: Callable[[Sequence[tuple[str, str]]], Floats]
) -> float:
    """Score the manifest's golden pairs.

    Args:
        manifest: Has the pairs and the variants' tolerances.
        precision: The variant that scores.
        score: From pairs to logits, float32 [n, labels].

    Returns:
        The largest difference to the reference's logits.

    Raises:
        EngineError: It is beyond the variant's tolerance.
    """
    golden = manifest.golden
    if not golden:
        return 0.0
    logits = score([(pair.query, pair.passage) for pair in golden])
    difference = float(np.abs(logits - np.asarray([pair.logits for pair in golden])).max(initial=0.0))
    tolerance = manifest.variants[precision].golden_tolerance
    if not difference <= tolerance:
        raise EngineError(
            f"the {precision} variant does not reproduce the bundle's golden scores on this machine",
            got=f"a difference of {difference:.4f}",
            allowed=f"up to {tolerance:.4f}",
            fix="Use another variant with precision=, or export the bundle on this machine.",
        )
    return difference
