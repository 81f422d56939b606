"""Graph passes: each takes a model, returns a new one, and states what it requires and what it ensures."""

from crossforge.export.passes.cls_only import keep_first_row
from crossforge.export.passes.fuse import fuse_for_cpu
from crossforge.export.passes.int8_dynamic import quantize_int8_dynamic
from crossforge.export.passes.result import PassResult
from crossforge.export.passes.smooth import smooth

__all__ = ["PassResult", "fuse_for_cpu", "keep_first_row", "quantize_int8_dynamic", "smooth"]
