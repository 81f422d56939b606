from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from crossforge.profiles import (
    BundleError,
    BundleNotFoundError,
    CrossforgeError,
    EngineError,
    IntegrityError,
    ManifestError,
    Precision,
)
from crossforge.runtime import Reranker
from support.builders import read_manifest, record_again, write_bundle, write_manifest
from support.mean_model import MeanModel

FP32, INT8 = Precision.FP32, Precision.INT8
ONNX = "onnx/model.onnx"


def flip_byte(place: float) -> Callable[[Path], object]:
    def harm(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[int(place * (len(content) - 1))] ^= 0xFF
        path.write_bytes(content)

    return harm


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("harm", [Path.unlink, truncate, flip_byte(0), flip_byte(0.5), flip_byte(1)])
@pytest.mark.parametrize("name", [ONNX, "onnx/model.onnx_data", "tokenizer.json"])
def test_a_damaged_file_is_an_integrity_error(tmp_path: Path, name: str, harm: Callable[[Path], object]) -> None:
    write_bundle(tmp_path, external_data=True)
    harm(tmp_path / name)

    with pytest.raises(IntegrityError, match=f"is damaged: {name} "):
        Reranker.load(tmp_path)


def test_only_the_files_that_run_are_compared(tmp_path: Path) -> None:
    write_bundle(tmp_path, precisions=(FP32, INT8))
    truncate(tmp_path / "onnx/model_int8.onnx")

    Reranker.load(tmp_path, precision="fp32").close()
    with pytest.raises(IntegrityError, match=r"is damaged: onnx/model_int8\.onnx has"):
        Reranker.load(tmp_path, precision="int8")


def test_files_are_compared_unless_they_need_not_be(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    with (tmp_path / "tokenizer.json").open("a") as file:
        file.write("\n")

    Reranker.load(tmp_path, check_files=False).close()
    with pytest.raises(IntegrityError, match=r"is damaged: tokenizer\.json has"):
        Reranker.load(tmp_path)


def test_a_model_that_was_exchanged_for_another_is_an_integrity_error(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    MeanModel(has_head=False).save(tmp_path / ONNX)

    with pytest.raises(IntegrityError, match=f"is damaged: {ONNX} "):
        Reranker.load(tmp_path)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (MeanModel(has_head=False), "is not a reranker with 1 label; got outputs masked ['batch', 'sequence', 4]"),
        (MeanModel(labels=2), "is not a reranker with 1 label; got outputs logits ['batch', 2]"),
    ],
)
def test_a_recorded_model_that_is_no_such_reranker_is_refused(tmp_path: Path, model: MeanModel, message: str) -> None:
    write_bundle(tmp_path)
    model.save(tmp_path / ONNX)
    record_again(tmp_path, ONNX)

    with pytest.raises(BundleError) as caught:
        Reranker.load(tmp_path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        (ONNX, EngineError, "ONNX Runtime cannot load"),
        ("tokenizer.json", ManifestError, "cannot read the tokenizer"),
    ],
)
def test_a_recorded_file_of_garbage_is_named(tmp_path: Path, name: str, kind: type[CrossforgeError], message: str) -> None:
    (write_bundle(tmp_path) / name).write_bytes(b"garbage" * 100)
    record_again(tmp_path, name)

    with pytest.raises(kind) as caught:
        Reranker.load(tmp_path)
    assert message in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)


def shift_golden(folder: Path, difference: float) -> None:
    """Move one golden logit of the bundle."""
    manifest = read_manifest(folder)
    first, *others = manifest.golden
    moved = replace(first, logits=(first.logits[0] + difference,))
    write_manifest(folder, replace(manifest, golden=(moved, *others)))


def test_golden_logits_are_compared_where_asked(tmp_path: Path) -> None:
    shift_golden(write_bundle(tmp_path), 0.25)

    Reranker.load(tmp_path).close()
    with pytest.raises(EngineError) as caught:
        Reranker.load(tmp_path, check_golden=True)
    assert str(caught.value).startswith(
        "the fp32 variant does not reproduce the bundle's golden scores on this machine;"
        " got a difference of 0.2500; allowed: up to 0.0001. Use another variant"
    )


def test_a_difference_within_the_tolerance_is_told(tmp_path: Path) -> None:
    write_bundle(tmp_path, variant_overrides={Precision.FP32: {"golden_tolerance": 0.5}})
    shift_golden(tmp_path, 0.25)

    with Reranker.load(tmp_path, check_golden=True) as reranker:
        assert reranker.check_golden() == pytest.approx(0.25, abs=1e-5)


@pytest.mark.parametrize(
    "labels",
    [
        1,
        pytest.param(
            3,
        ),
    ],
)
def test_a_bundle_without_golden_pairs_has_nothing_to_compare(tmp_path: Path, labels: int) -> None:
    write_bundle(tmp_path, model=MeanModel(labels=labels), golden=())

    with Reranker.load(tmp_path, check_golden=True) as reranker:
        assert reranker.check_golden() == 0.0


def test_a_graph_with_other_inputs_than_the_manifest_names_is_refused(tmp_path: Path) -> None:
    write_bundle(tmp_path, input_names=("input_ids", "attention_mask"))

    with pytest.raises(BundleError, match="token_type_ids"):
        Reranker.load(tmp_path)


@pytest.mark.parametrize("path", ["absent", ""])
def test_where_there_is_no_bundle_nothing_loads(tmp_path: Path, path: str) -> None:
    with pytest.raises(BundleNotFoundError):
        Reranker.load(tmp_path / path)
