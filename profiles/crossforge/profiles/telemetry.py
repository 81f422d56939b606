"""Nothing that crossforge imports reports to anybody."""

from __future__ import annotations

import os


def switch_off_telemetry() -> None:
    """Tell ONNX Runtime and huggingface_hub not to report, unless the environment says something else; before their import.

    ONNX Runtime writes an id of the device into the home folder when it is imported, from release 1.29 on, and sends events
    about sessions and models (https://github.com/microsoft/onnxruntime/pull/27379). huggingface_hub puts the versions of the
    installed frameworks into each request
    (https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables#hfhubdisabletelemetry).
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
