"""Adding variants to a bundle that exists: made of its float32 graph, judged against it, put in place whole."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

import onnx

from crossforge.export.bundle import record_files, staged_bundle
from crossforge.export.evidence import read_evidence
from crossforge.export.options import VariantOptions
from crossforge.export.reports import read_reports, write_reports
from crossforge.export.variants import VariantMaker
from crossforge.profiles import MANIFEST_NAME, InputError, Manifest, Precision
from crossforge.runtime.bundle import Bundle, refuse_hub
from crossforge.runtime.progress import Progress, Silent
from crossforge.runtime.prompts import open_tokenizer


def quantize_bundle(
    bundle: str | Path,
    precisions: Sequence[Precision],
    options: VariantOptions | None = None,
    *,
    target: str | Path | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Add variants to a bundle, or make them anew.

    A variant comes out as ``export`` would have made it. The checkpoint is not needed: the bundle's float32 graph is the
    source and the reference. Nothing changes unless every variant is made and accepted.

    Args:
        bundle: The bundle's folder; with a ``target`` also a bundle on the hub.
        precisions: The variants to make.
        options: How they are made and judged.
        target: Where the result goes; None replaces ``bundle``.
        progress: Told of each stage.

    Returns:
        The manifest of the result.

    Raises:
        InputError: No precision is named, or float32 is; the bundle has no float32 variant, or one that failed its gate;
            or as :func:`~crossforge.export.exporter.export_bundle` says.
        BundleError: The bundle is damaged.
        GateError: A variant ranks differently from the float32 graph.
    """
    options, progress = options or VariantOptions(), progress or Silent()
    if target is None:
        refuse_hub(bundle, "quantize without --output")
    opened = Bundle.open_whole(bundle)
    manifest = opened.manifest
    fp32 = manifest.variants.get(Precision.FP32)
    wanted = tuple(precision for precision in Precision if precision in precisions)
    allowed = ", ".join(precision for precision in Precision if precision is not Precision.FP32)
    if not wanted or Precision.FP32 in wanted:
        raise InputError("name variants to make of the fp32 graph", got=", ".join(wanted) or "none", allowed=allowed)
    if fp32 is None:
        raise InputError(
            f"{opened.path} has no fp32 variant to quantize",
            got=", ".join(manifest.variants),
            fix="Export it again with fp32 among --precision.",
        )
    if not fp32.parity.passed:
        raise InputError("the bundle's fp32 variant failed its own gate", fix="Export it again.")
    evidence = read_evidence(options)
    opened.check(manifest.files)
    with staged_bundle(target or opened.path) as folder:
        shutil.copytree(opened.path, folder, dirs_exist_ok=True)
        maker = VariantMaker(
            folder,
            open_tokenizer(folder, manifest),
            manifest.scoring,
            pad_token_id=manifest.pad_token_id,
            options=options,
            evidence=evidence,
            progress=progress,
            embedding=manifest.embedding,
        )
        graph = onnx.load(str(folder / fp32.path))
        with progress.stage("score with fp32") as stage:
            reference = maker.score(graph)
            stage.note = f"{len(reference)} pairs"
        for precision in wanted:
            maker.add(precision, graph, reference)
        write_reports(folder, {**read_reports(folder), **maker.reports})
        variants = {**manifest.variants, **maker.variants}
        result = dataclasses.replace(
            manifest,
            variants={precision: variants[precision] for precision in Precision if precision in variants},
            files=record_files(folder),
        )
        (folder / MANIFEST_NAME).write_text(result.to_json(), encoding="utf-8")
    return result
