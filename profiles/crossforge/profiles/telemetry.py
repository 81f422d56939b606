"""Nothing that crossforge imports reports to anybody."""

from __future__ import annotations

import os


def switch_off_telemetry() -> None:
    """Tell libraries not to report, unless the environment says something else; to be called before they are imported.

    ONNX Runtime writes an id of the device into the home folder when it is imported, from release 1.29 on, and sends events
    about sessions and models (https://github.com/microsoft/onnxruntime/pull/27379). huggingface_hub puts the versions of the
    installed frameworks into each request
    (https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables#hfhubdisabletelemetry).
    A Ray cluster reports its use from the machine that starts it (https://docs.ray.io/en/latest/cluster/usage-stats.html).
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
