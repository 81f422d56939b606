"""Nothing that crossforge imports reports to anybody."""

from __future__ import annotations

import os


def switch_off_telemetry() -> None:
    """Tell ONNX Runtime not to report, unless the environment says something else; to be called before it is imported.

    From release 1.29 on it writes an id of the device into the home folder when it is imported, and sends events about
    sessions and models (https://github.com/microsoft/onnxruntime/pull/27379).
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
