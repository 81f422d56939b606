"""Make a bundle, and prove it. Needs the ``export`` extra; importing this package alone loads nothing heavy."""

from crossforge.profiles.telemetry import switch_off_telemetry

switch_off_telemetry()  # before any module of this package imports ONNX Runtime
