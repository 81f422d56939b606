"""Variants for OpenVINO: made of the float32 graph, measured by OpenVINO itself, held to the gate."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from crossforge.export.exporter import export_bundle
from crossforge.export.gates import Gate
from crossforge.export.openvino import check_openvino
from crossforge.export.options import VariantOptions
from crossforge.export.quantize import quantize_bundle
from crossforge.export.trimming import trim_bundle
from crossforge.profiles import (
    ExecutionProvider,
    GateError,
    MissingPackageError,
    Precision,
    ProviderUnavailableError,
)
from crossforge.profiles.precision import BF16_INSTRUCTION_SETS, EXACT_INT8_INSTRUCTION_SETS
from crossforge.runtime import Reranker
from crossforge.runtime.bundle import Bundle
from crossforge.runtime.machine import inspect_machine
from crossforge.runtime.verification import verify_bundle
from support.builders import make_machine
from support.tiny_models import UNGATED

OPEN = VariantOptions(gates=UNGATED.gates)
INT8 = (Precision.INT8_OPENVINO, Precision.INT8_DYNAMIC_OPENVINO)
HAS_BF16 = bool(set(BF16_INSTRUCTION_SETS) & set(inspect_machine().instruction_sets))
needs_bf16 = pytest.mark.skipif(not HAS_BF16, reason="this processor has no bfloat16")
HOW = 'pip install "crossforge[openvino-export]"'


@pytest.fixture(scope="module", autouse=True)
def openvino() -> None:
    """Skips where OpenVINO or NNCF is not installed."""
    pytest.importorskip("openvino", reason=HOW)
    pytest.importorskip("nncf", reason=HOW)


@pytest.fixture(scope="module")
def quantized(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with both int8 variants; tests must not change it."""
    path = tmp_path_factory.mktemp("openvino") / "bundle"
    quantize_bundle(tiny_bundle, INT8, OPEN, target=path)
    return path


def test_every_file_of_a_variant_is_recorded(quantized: Path) -> None:
    bundle = Bundle.open(quantized)
    bundle.check(bundle.manifest.files)

    for precision in INT8:
        name = precision.removesuffix("_openvino")
        variant = bundle.manifest.variants[precision]
        assert variant.files == (f"openvino/model_{name}.xml", f"openvino/model_{name}.bin")
        assert variant.instruction_sets == EXACT_INT8_INSTRUCTION_SETS
        assert variant.parity.reference == "fp32"
        assert variant.quantization["method"] == ("static" if precision is Precision.INT8_OPENVINO else "dynamic")
        assert str(quantized) not in (quantized / variant.path).read_text(encoding="utf-8")


@pytest.mark.parametrize("precision", INT8)
def test_a_named_variant_runs_on_its_engine(quantized: Path, precision: Precision) -> None:
    query, passages = "where is the city", ["berlin is a city", "oranges", "the train to hamburg"] * 3
    with Reranker.load(quantized, precision="fp32", provider="cpu") as reranker:
        reference = reranker.score(query, passages)
    with Reranker.load(quantized, precision=precision, check_golden=True) as reranker:  # its own golden scores
        assert reranker.session.provider is ExecutionProvider.OPENVINO
        difference = np.abs(reranker.score(query, passages) - reference)
    assert difference.max() > 0, "float32 ran"
    assert np.isfinite(difference).all()


def test_a_variant_does_not_run_on_another_engine(quantized: Path) -> None:
    with pytest.raises(ProviderUnavailableError, match="only the openvino engine runs int8_openvino"):
        Reranker.load(quantized, precision="int8_openvino", provider="cpu", strict=True)
    with pytest.raises(ProviderUnavailableError, match=r"it runs fp32, bf16_openvino, .*, not int8"):
        Reranker.load(quantized, precision="int8", provider="openvino", strict=True)


def test_a_pair_scores_the_same_in_any_company(quantized: Path) -> None:
    with Reranker.load(quantized, precision="int8_dynamic_openvino") as reranker:
        alone = reranker.score("where is the city", ["berlin is a city"])
        beside = reranker.score("where is the city", ["berlin is a city", "oranges " * 40])
    np.testing.assert_allclose(beside[:1], alone, atol=1e-4)


def test_verify_rescores_the_golden_pairs_on_the_engine(quantized: Path) -> None:
    verdicts = {verdict.precision: verdict for verdict in verify_bundle(quantized).variants}
    assert all(verdicts[precision].problem is None for precision in INT8)


def test_a_variant_that_ranks_differently_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    strict = VariantOptions(gates={Precision.INT8_OPENVINO: Gate(max_abs_diff=1e-9)})

    with pytest.raises(GateError, match="the int8_openvino variant does not rank like fp32"):
        quantize_bundle(bundle, [Precision.INT8_OPENVINO], strict)
    assert not (bundle / "openvino").exists()


def test_nothing_but_documents_goes_to_stdout(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quantize_bundle(tiny_bundle, [Precision.INT8_DYNAMIC_OPENVINO], OPEN, target=tmp_path / "bundle")
    assert capsys.readouterr().out == ""


@needs_bf16
def test_bfloat16_is_the_float32_file_under_a_gate_of_its_own(tiny_bundle: Path, tmp_path: Path) -> None:
    manifest = quantize_bundle(tiny_bundle, [Precision.BF16_OPENVINO], OPEN, target=tmp_path / "bundle")
    fp32, bf16 = manifest.variants[Precision.FP32], manifest.variants[Precision.BF16_OPENVINO]

    assert bf16.files == fp32.files
    assert bf16.instruction_sets == BF16_INSTRUCTION_SETS
    assert fp32.parity.max_abs_diff < bf16.parity.max_abs_diff < 1
    with Reranker.load(tmp_path / "bundle", provider="openvino", precision="bf16_openvino", check_golden=True) as reranker:
        assert reranker.precision is Precision.BF16_OPENVINO


@needs_bf16
def test_an_export_without_fp32_keeps_the_file_that_bfloat16_computes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    options = replace(UNGATED, precisions=(Precision.BF16_OPENVINO,))
    manifest = export_bundle(str(tiny_checkpoint), tmp_path / "bundle", options)

    assert list(manifest.variants) == [Precision.BF16_OPENVINO]
    Bundle.open(tmp_path / "bundle").check(manifest.files)


def test_a_trimmed_bundle_has_no_variants_of_openvino(quantized: Path, tmp_path: Path) -> None:
    manifest = trim_bundle(quantized, tmp_path / "trimmed", ["berlin is a city"])
    assert list(manifest.variants) == [Precision.FP32, Precision.INT8]
    assert not (tmp_path / "trimmed" / "openvino").exists()


def test_what_cannot_be_measured_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = make_machine(openvino_packages=("openvino 2026.4.1",))

    with pytest.raises(ProviderUnavailableError, match=r'OpenVINO is not installed: pip install "crossforge\[openvino\]"'):
        check_openvino(Precision.INT8_OPENVINO, make_machine())
    with pytest.raises(ProviderUnavailableError, match="which it would compute in float32"):
        check_openvino(Precision.BF16_OPENVINO, installed)
    check_openvino(Precision.BF16_OPENVINO, replace(installed, instruction_sets=("avx512_bf16",)))
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(MissingPackageError, match=r'pip install "crossforge\[openvino-export\]"'):
        check_openvino(Precision.INT8_OPENVINO, installed)
