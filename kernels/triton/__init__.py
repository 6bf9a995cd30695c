"""Accelerators in Triton for NVIDIA GPUs. In tests they run in Triton's interpreter (TRITON_INTERPRET=1)."""

import os
from types import SimpleNamespace

try:
    import triton
    import triton.language as tl
except ImportError:  # no Triton on this platform: nothing here is used
    triton, tl = None, SimpleNamespace(constexpr=None)

jit = (lambda function=None, **_: function or (lambda f: f)) if triton is None else triton.jit


def interpreting() -> bool:
    """Does Triton's interpreter run kernels on the CPU?"""
    return triton is not None and os.environ.get("TRITON_INTERPRET") == "1"


def available(device) -> bool:
    return triton is not None and device.type == "cuda" or interpreting()
