"""A correction of Triton 3.8's interpreter, which multiplies bfloat16 operands as integers and truncates casts."""

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


def correct_bfloat16():
    """Replace the interpreter's products and casts of bfloat16 by those of a GPU: float32 products, rounded casts."""
    builder = interpreter.InterpreterBuilder
    plain_dot, plain_cast = builder.create_dot, builder.cast_impl

    def create_dot(self, a, b, d, *options):
        a, b = (self.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return plain_dot(self, a, b, d, *options)

    def cast_impl(self, source, kind):
        if source.dtype.scalar == tl.float32 and kind.scalar == tl.bfloat16:
            return interpreter.TensorHandle(to_bfloat16(source.data), tl.bfloat16)
        return plain_cast(self, source, kind)

    builder.create_dot, builder.cast_impl = create_dot, cast_impl


def to_bfloat16(number):
    """Convert float32 to the bits of bfloat16, rounded to nearest, ties to even."""
    bits = number.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(number), np.uint32(0x7FC0), rounded).astype(np.uint16)
