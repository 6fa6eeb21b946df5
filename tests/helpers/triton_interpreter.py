"""Triton's interpreter, mended: 3.8 multiplies bfloat16 operands as integers and cuts bits off where a GPU rounds."""

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


def mend():
    """Make bfloat16 products and casts in the interpreter what a GPU makes of them."""
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
    """float32 to the bits of bfloat16, to nearest, halves to even."""
    bits = number.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(number), np.uint32(0x7FC0), rounded).astype(np.uint16)
