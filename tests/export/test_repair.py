from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossforge.export.exporter import ExportOptions, export_bundle
from crossforge.export.gates import GATES, Gate
from crossforge.export.repair import find_repair
from crossforge.profiles import GateError, Precision
from crossforge.runtime import Reranker
from crossforge.runtime.bundle import Bundle
from support.tiny_models import UNGATED


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12, unique=True), st.floats(0, 6))
def test_the_fewest_most_sensitive_layers_are_left_out(costs: list[float], tolerated: float) -> None:
    cost = {f"layer {i}": value for i, value in enumerate(costs)}
    found = find_repair(
        list(cost),
        loss=lambda quantized: sum(cost[name] for name in quantized),
        passes=lambda kept: sum(value for name, value in cost.items() if name not in kept) <= tolerated,
    )
    order = sorted(cost, key=lambda name: -cost[name])
    needed = next(
        n for n in range(1, len(order) + 1) if sum(cost[name] for name in order[n:]) <= tolerated or n == len(order)
    )
    assert found.keep_fp32 == tuple(order[:needed])
    assert found.sensitivity == cost


@pytest.mark.usefixtures("exact_int8")
def test_a_failing_variant_is_repaired(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    whole = Bundle.open(tiny_bundle).manifest.variants[Precision.INT8]
    gate = Gate(max_abs_diff=whole.parity.max_abs_diff * 0.7)
    gates = {**GATES, Precision.INT8: gate}
    with pytest.raises(GateError, match="the int8 variant does not rank like fp32"):
        export_bundle(str(tiny_checkpoint), tmp_path / "refused", ExportOptions(gates=gates, repair=False))
    assert not (tmp_path / "refused").exists()

    manifest = export_bundle(str(tiny_checkpoint), tmp_path / "repaired", ExportOptions(gates=gates))
    variant = manifest.variants[Precision.INT8]
    kept = str(variant.quantization["layers_kept_fp32"]).split(", ")
    assert variant.parity.passed
    assert 1 <= len(kept) < 12
    assert int(variant.quantization["repair_added_bytes"]) > 0
    assert float(variant.quantization["repair_slowdown"]) > 0
    assert variant.parity.max_abs_diff <= whole.parity.max_abs_diff * 0.7
    with Reranker.load(tmp_path / "repaired", precision="int8", check_golden=True) as reranker:
        assert reranker.precision is Precision.INT8


def test_an_open_gate_needs_no_repair(tiny_checkpoint: Path, tmp_path: Path) -> None:
    manifest = export_bundle(str(tiny_checkpoint), tmp_path / "bundle", replace(UNGATED, repair=True))
    assert "layers_kept_fp32" not in manifest.variants[Precision.INT8].quantization
