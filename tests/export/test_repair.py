from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from crossforge.export.exporter import ExportOptions, export_bundle
from crossforge.export.gates import GATES, Gate
from crossforge.export.repair import find_repair
from crossforge.profiles import GateError, Precision
from crossforge.runtime import Reranker
from crossforge.runtime.bundle import Bundle
from support.tiny_models import UNGATED

OUTLIER_CHANNEL = 5
OUTLIER = 400.0


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


def test_a_layer_that_gives_no_number_is_the_most_sensitive() -> None:
    losses = {"a": 0.1, "b": float("nan"), "c": 0.2}
    found = find_repair(list(losses), loss=lambda quantized: losses[min(quantized)], passes=lambda kept: "b" in kept)
    assert found.keep_fp32 == ("b",)


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


@pytest.mark.usefixtures("exact_int8")
def test_a_fragile_model_fails_plainly_and_is_repaired_where_it_is_fragile(checkpoint: Path, tmp_path: Path) -> None:
    """One channel behind GELU 400 times as large and read with weights as much smaller: nothing changes but for int8."""
    weights = load_file(checkpoint / "model.safetensors")
    layer = "bert.encoder.layer.0."
    weights[layer + "intermediate.dense.weight"][OUTLIER_CHANNEL] *= OUTLIER
    weights[layer + "intermediate.dense.bias"][OUTLIER_CHANNEL] *= OUTLIER
    weights[layer + "output.dense.weight"][:, OUTLIER_CHANNEL] /= OUTLIER
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(GateError, match="the int8 variant does not rank like fp32") as refused:
        export_bundle(str(checkpoint), tmp_path / "refused", ExportOptions(repair=False))
    assert "most moved" in str(refused.value)

    variant = export_bundle(str(checkpoint), tmp_path / "repaired", ExportOptions()).variants[Precision.INT8]
    graph = onnx.load(str(tmp_path / "repaired" / "onnx" / "model.onnx")).graph
    products = [node.input[1] for node in graph.node if node.name.startswith("/bert/encoder/layer.0/output/dense/MatMul")]
    assert str(variant.quantization["layers_kept_fp32"]).split(", ")[0] in products
    assert variant.parity.passed
    assert variant.parity.kendall_tau is not None
    assert variant.parity.kendall_tau >= 0.95


def test_an_open_gate_needs_no_repair(tiny_checkpoint: Path, tmp_path: Path) -> None:
    manifest = export_bundle(str(tiny_checkpoint), tmp_path / "bundle", replace(UNGATED, repair=True))
    assert "layers_kept_fp32" not in manifest.variants[Precision.INT8].quantization
