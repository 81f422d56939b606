"""Adding variants to a bundle that exists."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest

from crossforge.export import variants
from crossforge.export.exporter import ExportOptions, export_bundle
from crossforge.export.gates import GATES, Gate
from crossforge.export.options import VariantOptions
from crossforge.export.pairs import calibration_pairs, verification_pairs
from crossforge.export.passes import fuse_for_cpu
from crossforge.export.quantize import quantize_bundle
from crossforge.export.reports import PAGE_NAME, read_reports
from crossforge.profiles import MANIFEST_NAME, ExecutionProvider, GateError, InputError, IntegrityError, Precision
from crossforge.runtime import Reranker
from crossforge.runtime.bundle import Bundle, sha256_of
from crossforge.runtime.machine import inspect_machine
from crossforge.runtime.providers import why_not
from crossforge.runtime.records import QueryRecord
from support.builders import record_again, write_bundle, write_manifest
from support.tiny_models import UNGATED

OPEN = VariantOptions(gates=UNGATED.gates)


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle that a test may change."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def write_run(path: Path, records: list[QueryRecord]) -> Path:
    lines = [
        {"qid": r.qid, "query": r.query, "passages": [{"id": p.id, "text": p.text} for p in r.passages]} for r in records
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_a_variant_is_added_beside_the_others(bundle: Path) -> None:
    before = Bundle.open(bundle).manifest
    manifest = quantize_bundle(bundle, [Precision.FP16], OPEN)
    assert list(manifest.variants) == [Precision.FP32, Precision.FP16, Precision.INT8]
    assert manifest.variants[Precision.INT8] == before.variants[Precision.INT8]
    assert (manifest.golden, manifest.source, manifest.tools) == (before.golden, before.source, before.tools)
    opened = Bundle.open(bundle)
    assert opened.manifest == manifest
    opened.check(manifest.files)
    with Reranker.load(bundle, precision="fp16", check_golden=True) as reranker:
        assert np.isfinite(reranker.score("query", ["passage"])).all()


def test_int8_comes_out_as_export_makes_it(bundle: Path) -> None:
    path = bundle / "onnx" / "model_int8.onnx"
    exported = onnx.load(str(path))
    quantize_bundle(bundle, [Precision.INT8], OPEN)
    assert onnx.load(str(path)).graph.SerializeToString(deterministic=True) == exported.graph.SerializeToString(
        deterministic=True
    )


def test_another_target_leaves_the_bundle_as_it_is(bundle: Path, tmp_path: Path) -> None:
    digests = {path: sha256_of(path) for path in bundle.rglob("*") if path.is_file()}
    quantize_bundle(bundle, [Precision.INT8, Precision.FP16], OPEN, target=tmp_path / "other")
    assert {path: sha256_of(path) for path in bundle.rglob("*") if path.is_file()} == digests
    assert Precision.FP16 in Bundle.open(tmp_path / "other").manifest.variants
    assert Precision.FP16 not in read_reports(bundle)


def test_the_report_names_every_variant_and_query(bundle: Path) -> None:
    quantize_bundle(bundle, [Precision.FP16], OPEN)
    reports = read_reports(bundle)
    assert set(reports) == {Precision.FP32, Precision.FP16, Precision.INT8}
    for precision, report in reports.items():
        assert report.parity == Bundle.open(bundle).manifest.variants[precision].parity
        assert [query.query for query in report.queries] == [record.query for record in verification_pairs()]
    page = (bundle / PAGE_NAME).read_text(encoding="utf-8")
    assert all(f"## {precision}\n" in page for precision in reports)


# The user's own pairs


def test_verdicts_rest_on_pairs_and_judgements_of_ones_own(bundle: Path, tmp_path: Path) -> None:
    records = verification_pairs()[:3]
    run = write_run(tmp_path / "run.jsonl", records)
    qrels = tmp_path / "qrels.txt"
    qrels.write_text("".join(f"{record.qid} 0 {record.passages[0].id} 1\n" for record in records))
    options = VariantOptions(gates=UNGATED.gates, verification=run, qrels=qrels)
    parity = quantize_bundle(bundle, [Precision.FP16], options).variants[Precision.FP16].parity
    assert (parity.queries, parity.pairs) == (3, 60)
    assert parity.quality is not None
    assert abs(parity.quality.ndcg_at_10 - parity.quality.reference_ndcg_at_10) < 0.05
    assert 0 < parity.quality.ndcg_at_10 < 1


def test_a_loss_on_judged_pairs_fails_the_gate(bundle: Path, tmp_path: Path) -> None:
    records = verification_pairs()[:3]
    run, qrels = write_run(tmp_path / "run.jsonl", records), tmp_path / "qrels.txt"
    qrels.write_text("".join(f"{record.qid} 0 {record.passages[0].id} 1\n" for record in records))
    gates = {**GATES, Precision.FP16: Gate(max_ndcg_loss=-0.5)}
    with pytest.raises(GateError, match=r"nDCG@10 .*\(fp32 .*allowed: nDCG@10 lower by no more than -0.5"):
        quantize_bundle(bundle, [Precision.FP16], VariantOptions(gates=gates, verification=run, qrels=qrels))


def test_pairs_that_a_variant_was_tuned_on_do_not_judge_it(bundle: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run.jsonl", calibration_pairs())
    with pytest.raises(InputError, match=r"held out from calibration.*120 pairs in both"):
        quantize_bundle(bundle, [Precision.FP16], VariantOptions(verification=run))


def test_a_run_that_orders_nothing_is_refused(bundle: Path, tmp_path: Path) -> None:
    record = verification_pairs()[0]
    single = QueryRecord(qid="1", query=record.query, passages=record.passages[:1])
    with pytest.raises(InputError, match="orders nothing"):
        quantize_bundle(bundle, [Precision.FP16], VariantOptions(verification=write_run(tmp_path / "run.jsonl", [single])))


@pytest.mark.parametrize("options", [VariantOptions, ExportOptions])
def test_judgements_without_pairs_are_refused(options: type[VariantOptions]) -> None:
    with pytest.raises(InputError, match="--verification"):
        options(qrels=Path("qrels.txt"))


# What no variant could fail


def test_pairs_that_the_reference_does_not_tell_apart_prove_no_ranking(bundle: Path, tmp_path: Path) -> None:
    record = verification_pairs()[0]
    same = tuple(replace(passage, text="The same text.") for passage in record.passages)
    run = write_run(tmp_path / "run.jsonl", [replace(record, passages=same)])
    with pytest.raises(InputError, match=r"fp32 scores all passages of every verification query alike"):
        quantize_bundle(bundle, [Precision.FP16], VariantOptions(verification=run))


@pytest.mark.parametrize("judgement", ["{qid} 0 no-such-passage 1", "{qid} 0 {first} 0"])
def test_judgements_that_tell_no_passages_apart_are_refused(bundle: Path, tmp_path: Path, judgement: str) -> None:
    records = verification_pairs()[:2]
    run, qrels = write_run(tmp_path / "run.jsonl", records), tmp_path / "qrels.txt"
    qrels.write_text("\n".join(judgement.format(qid=r.qid, first=r.passages[0].id) for r in records))
    with pytest.raises(InputError, match=r"tells no passages of the verification pairs apart"):
        quantize_bundle(bundle, [Precision.FP16], VariantOptions(verification=run, qrels=qrels))


def test_judgements_for_a_model_that_does_not_rank_are_refused(bundle: Path, tmp_path: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    write_manifest(bundle, replace(manifest, scoring=replace(manifest.scoring, ranking_label=None)))
    record = verification_pairs()[0]
    run, qrels = write_run(tmp_path / "run.jsonl", [record]), tmp_path / "qrels.txt"
    qrels.write_text(f"{record.qid} 0 {record.passages[0].id} 1\n")
    with pytest.raises(InputError, match=r"no label of this model ranks.*--ranking-label"):
        quantize_bundle(bundle, [Precision.FP16], VariantOptions(verification=run, qrels=qrels))


def test_ten_passages_overlap_whatever_their_order(bundle: Path, tmp_path: Path) -> None:
    record = verification_pairs()[0]
    run = write_run(tmp_path / "run.jsonl", [replace(record, passages=record.passages[:10])])
    gates = {**GATES, Precision.FP16: Gate(min_top10_overlap=1.0)}
    with pytest.raises(InputError, match="min_top10_overlap holds whatever the order"):
        quantize_bundle(bundle, [Precision.FP16], VariantOptions(verification=run, gates=gates))


def test_a_model_of_which_all_stays_float32_is_no_fp16(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "find_overflows", partial(variants.find_overflows, limit=0.0))  # so that everything does
    with pytest.raises(InputError, match=r"nothing of this model can be converted to fp16 \(0 nodes in float16"):
        quantize_bundle(bundle, [Precision.FP16], OPEN)


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.INT8_QDQ])
def test_a_model_without_anything_to_quantize_is_refused(tmp_path: Path, precision: Precision) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    with pytest.raises(InputError, match="nothing of this model can be quantized to int8"):
        quantize_bundle(bundle, [precision], VariantOptions())


# When nothing changes


def test_a_failed_gate_changes_nothing_but_says_which_queries_moved(bundle: Path, tmp_path: Path) -> None:
    manifest = (bundle / MANIFEST_NAME).read_bytes()
    report = tmp_path / "why.json"
    gates = {**GATES, Precision.FP16: Gate(max_abs_diff=0.0)}
    with pytest.raises(GateError, match=r"the fp16 variant does not rank like fp32.*logits within 0"):
        quantize_bundle(bundle, [Precision.FP16], VariantOptions(gates=gates, report=report))
    assert (bundle / MANIFEST_NAME).read_bytes() == manifest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "why.json"]
    document = json.loads(report.read_text())
    assert document["variants"]["fp16"]["parity"]["passed"] is False
    assert len(document["variants"]["fp16"]["queries"]) == 12


@pytest.mark.parametrize("precisions", [[], [Precision.FP32], [Precision.INT8, Precision.FP32]])
def test_fp32_is_not_made_of_itself(bundle: Path, precisions: list[Precision]) -> None:
    with pytest.raises(
        InputError, match=r"variants to make of the fp32 graph.*allowed: fp16, int8, int8_qdq, fp16_cuda, int8_native"
    ):
        quantize_bundle(bundle, precisions)


def test_a_bundle_without_fp32_is_refused(bundle: Path) -> None:
    document = json.loads((bundle / MANIFEST_NAME).read_text())
    del document["variants"]["fp32"]
    (bundle / MANIFEST_NAME).write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"no fp32 variant.*Export it again"):
        quantize_bundle(bundle, [Precision.INT8])


def test_a_damaged_bundle_is_refused(bundle: Path) -> None:
    with (bundle / "onnx" / "model.onnx").open("r+b") as file:
        file.seek(1000)
        file.write(b"\0\1\2\3")
    with pytest.raises(IntegrityError, match="was altered"):
        quantize_bundle(bundle, [Precision.INT8])


def test_external_data_is_quantized_and_replaced(tiny_checkpoint: Path, tmp_path: Path) -> None:
    export_bundle(str(tiny_checkpoint), tmp_path / "bundle", replace(UNGATED, external_data_threshold_bytes=0))
    manifest = quantize_bundle(tmp_path / "bundle", [Precision.INT8], OPEN)
    assert manifest.variants[Precision.INT8].files == ("onnx/model_int8.onnx",)
    assert "onnx/model_int8.onnx_data" not in manifest.files
    Bundle.open(tmp_path / "bundle").check(manifest.files)


def test_quantizing_needs_no_torch() -> None:
    code = "import sys, crossforge.export.quantize; print(sorted({'torch', 'transformers', 'optimum'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# For CUDA


def test_a_variant_for_cuda_is_fused_and_judged_where_it_could_be(bundle: Path) -> None:
    variant = quantize_bundle(bundle, [Precision.FP16_CUDA], OPEN).variants[Precision.FP16_CUDA]
    here = "cuda" if why_not(ExecutionProvider.CUDA, inspect_machine()) is None else "cpu"
    assert variant.quantization["judged_on"] == here
    graph = onnx.load(str(bundle / variant.path)).graph
    halves = {value.name for value in graph.initializer if value.data_type == onnx.TensorProto.FLOAT16}
    attention = [node for node in graph.node if node.op_type == "Attention"]
    assert attention
    assert all(node.input[1] in halves for node in attention)


def test_a_model_that_leaves_float16s_range_is_not_fused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: sha256_of(path) for path in bundle.rglob("*") if path.is_file()}
    monkeypatch.setattr(variants, "find_overflows", partial(variants.find_overflows, limit=0.0))  # so that everything does
    with pytest.raises(GateError, match=r"nodes leave float16's range .* Use fp16, which keeps them in float32"):
        quantize_bundle(bundle, [Precision.FP16_CUDA], OPEN)
    assert {path: sha256_of(path) for path in bundle.rglob("*") if path.is_file()} == before


def test_a_model_without_anything_to_fuse_is_refused(bundle: Path) -> None:
    path = bundle / "onnx" / "model.onnx"
    onnx.save(fuse_for_cpu(onnx.load(str(path))).model, str(path))
    record_again(bundle, "onnx/model.onnx")
    with pytest.raises(InputError, match=r"nothing of this model can be fused for CUDA .*fused already"):
        quantize_bundle(bundle, [Precision.FP16_CUDA], OPEN)
