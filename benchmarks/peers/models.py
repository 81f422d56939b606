"""The demo model in every form that the peers read, made with sentence-transformers' own helpers in their environment.

python models.py CHECKPOINT TARGET CALIBRATION INSTRUCTION_SET FLASHRANK_NAME FLASHRANK_FILE

CALIBRATION is a folder with a file train.jsonl of {"sentence": ...} rows; by itself the OpenVINO helper would take a hub's
data set. INSTRUCTION_SET is the one that the ONNX helper is told: avx512_vnni, avx2, arm64.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

TOKENIZER_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def main() -> None:
    checkpoint, target = Path(sys.argv[1]), Path(sys.argv[2])
    calibration, instruction_set, flashrank_name, flashrank_file = sys.argv[3:]
    from sentence_transformers import (
        CrossEncoder,
        export_dynamic_quantized_onnx_model,
        export_static_quantized_openvino_model,
    )

    model = target / "sentence-transformers"
    shutil.copytree(checkpoint, model, dirs_exist_ok=True)
    exported = CrossEncoder(str(model), device="cpu", backend="onnx", model_kwargs={"export": True})
    exported.save_pretrained(str(model))
    export_dynamic_quantized_onnx_model(exported, instruction_set, str(model), file_suffix="qint8")
    exported = CrossEncoder(str(model), device="cpu", backend="openvino", model_kwargs={"export": True})
    exported.save_pretrained(str(model))
    export_static_quantized_openvino_model(
        exported,
        None,
        str(model),
        dataset_name=calibration,
        dataset_config_name="default",
        dataset_split="train",
        column_name="sentence",
    )
    from_one = target / "fastembed" / "onnx" / "model.onnx"
    from_one.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(model / "onnx" / "model.onnx", from_one)
    ranker = target / "flashrank" / flashrank_name
    ranker.mkdir(parents=True, exist_ok=True)
    shutil.copy(model / "onnx" / "model_qint8.onnx", ranker / flashrank_file)
    for folder in (target / "fastembed", ranker):
        for name in TOKENIZER_FILES:
            shutil.copy(checkpoint / name, folder / name)
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        config.pop("max_length", None)  # the base model's 128, at which fastembed would cut
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
