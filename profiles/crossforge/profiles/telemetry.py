"""Nothing that crossforge imports reports to anybody."""

from __future__ import annotations

import os


def switch_off_telemetry() -> None:
    """Tell ONNX Runtime and Ray not to report, unless the environment says otherwise; to be called before they are imported.

    From release 1.29 on ONNX Runtime writes an id of the device into the home folder when it is imported, and sends events
    about sessions and models (https://github.com/microsoft/onnxruntime/pull/27379). A Ray cluster reports its use from the
    machine that starts it (https://docs.ray.io/en/latest/cluster/usage-stats.html).
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
