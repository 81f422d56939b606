"""Graph passes: each takes a model, returns a new one, and states what it requires and what it ensures."""

from crossforge.export.passes.cls_only import keep_first_row
from crossforge.export.passes.fp16 import convert_fp16
from crossforge.export.passes.fp16_overflow import find_overflows
from crossforge.export.passes.fuse import fuse_for_cpu
from crossforge.export.passes.fuse_cuda import fuse_for_cuda
from crossforge.export.passes.int8_dynamic import quantize_int8_dynamic
from crossforge.export.passes.int8_static import quantize_int8_static
from crossforge.export.passes.result import PassResult
from crossforge.export.passes.settle_shapes import settle_shapes
from crossforge.export.passes.smooth import smooth
from crossforge.export.passes.trim_vocabulary import trim_vocabulary

__all__ = [
    "PassResult",
    "convert_fp16",
    "find_overflows",
    "fuse_for_cpu",
    "fuse_for_cuda",
    "keep_first_row",
    "quantize_int8_dynamic",
    "quantize_int8_static",
    "settle_shapes",
    "smooth",
    "trim_vocabulary",
]
