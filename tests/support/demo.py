"""What ``crossforge demo`` makes, and the bundle in it that every machine can make."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from typer.testing import CliRunner

from crossforge.export.bundle import record_files
from crossforge.export.cli import app
from crossforge.export.reports import read_reports, write_reports
from crossforge.profiles import Precision
from support.builders import read_manifest, write_manifest

BUNDLE = "bundle"
PRINTED = "printed.json"


def run_demo(folder: Path) -> None:
    """Run the command; its bundle and what it printed go into ``folder``, which is made."""
    folder.mkdir(parents=True)
    result = CliRunner().invoke(app, ["demo", "--bundle", str(folder / BUNDLE), "--json"])
    assert result.exit_code == 0, result.output
    (folder / PRINTED).write_text(result.stdout, encoding="utf-8")


def copy_without(bundle: Path, target: Path, precision: Precision) -> None:
    """Copy a bundle as it would be if a variant had not been asked for."""
    shutil.copytree(bundle, target)
    manifest, reports = read_manifest(target), read_reports(target)
    variants = dict(manifest.variants)
    if left := variants.pop(precision, None):
        for name in left.files:
            (target / name).unlink()
            if not list((target / name).parent.iterdir()):
                (target / name).parent.rmdir()
        del reports[precision]
        write_reports(target, reports)
        write_manifest(target, replace(manifest, variants=variants, files=record_files(target)))
