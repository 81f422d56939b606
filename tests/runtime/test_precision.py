from __future__ import annotations

from typing import Any

import pytest

from crossforge.profiles import ExecutionProvider, InputError, Manifest, Precision, Variant
from crossforge.runtime.precision import select_precision
from support.builders import make_machine, make_manifest, make_parity, make_variant

CPU, CUDA, TENSORRT = ExecutionProvider.CPU, ExecutionProvider.CUDA, ExecutionProvider.TENSORRT
FP32, FP16, INT8 = Precision.FP32, Precision.FP16, Precision.INT8
FP16_CUDA = Precision.FP16_CUDA
NO_VNNI = make_machine(instruction_sets=("avx2",))
SATURATES = "not int8: its integer products saturate on this processor, which has none of avx512_vnni, arm64"
FAILED = "it failed its parity gate when the bundle was made"
JUDGED_HERE = {"fp16_cuda": make_variant(FP16_CUDA, quantization={"judged_on": "cuda"})}
JUDGED_ELSEWHERE = {"fp16_cuda": make_variant(FP16_CUDA, quantization={"judged_on": "cpu"})}
NOT_ON_CUDA = "not fp16_cuda: it was judged on cpu alone; make it anew here, to have it judged on cuda"


def bundle_of(*precisions: Precision, failed: tuple[Precision, ...] = (), **variants: Variant) -> Manifest:
    made = {p: make_variant(p, parity=make_parity(passed=p not in failed)) for p in precisions}
    return make_manifest(variants=made | {Precision(name): variant for name, variant in variants.items()})


@pytest.mark.parametrize(
    ("manifest", "provider", "machine", "precision", "reasons"),
    [
        (bundle_of(FP32, INT8), CPU, make_machine(), INT8, ()),
        (bundle_of(FP32, INT8), CPU, make_machine(instruction_sets=("asimd", "arm64")), INT8, ()),
        (bundle_of(FP32, INT8), CPU, NO_VNNI, FP32, (SATURATES,)),
        (bundle_of(FP32, INT8, failed=(INT8,)), CPU, make_machine(), FP32, (f"not int8: {FAILED}",)),
        (bundle_of(FP32), CPU, make_machine(), FP32, ("not int8: not in the bundle",)),
        (bundle_of(FP32, int8=make_variant(INT8, instruction_sets=())), CPU, NO_VNNI, INT8, ()),
        (bundle_of(FP32, FP16, INT8), CPU, NO_VNNI, FP32, (SATURATES,)),
        (bundle_of(FP32, FP16, INT8), CUDA, make_machine(), FP16, ()),
        (bundle_of(FP32, FP16, INT8), TENSORRT, make_machine(), FP16, ()),
        (bundle_of(FP32, fp16=make_variant(FP16, instruction_sets=("arm64",))), CUDA, NO_VNNI, FP16, ()),
        (bundle_of(FP32, INT8), CUDA, make_machine(), FP32, ("not fp16: not in the bundle",)),
        (bundle_of(FP32, FP16, **JUDGED_HERE), CUDA, make_machine(), FP16_CUDA, ()),
        (bundle_of(FP32, FP16, **JUDGED_ELSEWHERE), CUDA, make_machine(), FP16, (NOT_ON_CUDA,)),
        (bundle_of(FP32, INT8, **JUDGED_HERE), CPU, make_machine(), INT8, ()),
        (bundle_of(FP32, FP16, **JUDGED_HERE), TENSORRT, make_machine(), FP16, ()),
        (bundle_of(FP32, FP16, failed=(FP16,)), CUDA, make_machine(), FP32, (f"not fp16: {FAILED}",)),
    ],
)
def test_auto_takes_the_fastest_variant_that_is_right_here(
    manifest: Manifest, provider: ExecutionProvider, machine: Any, precision: Precision, reasons: tuple[str, ...]
) -> None:
    choice = select_precision("auto", manifest, provider, machine)

    assert (choice.precision, choice.reasons) == (precision, reasons)


@pytest.mark.parametrize("precision", [FP32, INT8])
def test_a_named_variant_is_taken_as_it_is(precision: Precision) -> None:
    choice = select_precision(precision.value, bundle_of(FP32, INT8, failed=(FP32, INT8)), CPU, NO_VNNI)

    assert (choice.precision, choice.reasons) == (precision, ())


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("fp64", "unknown precision; got 'fp64'; allowed: auto, fp32, fp16, int8"),
        ("", "unknown precision; got ''"),
        ("fp16", "the bundle has no fp16 variant; got fp16; allowed: fp32, int8"),
    ],
)
def test_a_variant_that_does_not_exist_is_refused(wanted: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        select_precision(wanted, bundle_of(FP32, INT8), CPU, make_machine())
    assert str(caught.value).startswith(message)


def test_auto_does_not_take_a_variant_that_nothing_speaks_for() -> None:
    with pytest.raises(InputError) as caught:
        select_precision("auto", bundle_of(FP32, INT8, failed=(FP32,)), CPU, NO_VNNI)
    assert str(caught.value) == (
        f"no variant of the bundle suits cpu ({SATURATES}; not fp32: {FAILED}); allowed: fp32, int8."
        " Name one with precision=."
    )
