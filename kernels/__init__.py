"""The computations of the loss (log-probs, KL, advantages, policy loss, LM head and loss in one), the attention of
decoding, and for CPUs the rest of a model (cpu_*). Imports nothing of ours outside.

Each file of the loss holds a PyTorch reference, which is the readable definition and what runs on CPUs, a Triton kernel
for CUDA tensors, and a public function that picks. What is written in C++ for CPUs is defined by model.py and
decoding.py. On a machine without a GPU the Triton kernels run in Triton's interpreter when TRITON_INTERPRET=1 is set
before the first import of triton.

`kernels.reference` switches a whole trainer (its option --reference) to the readable path: what is computed here
follows its definition, differentiated by autograd; attention is a softmax over explicit scores (model.py), a prompt is
repeated for each of its completions (batch.py), and decoding goes over copied prompts step by step (generate.py). The
same numbers up to rounding, for more time and memory.
"""

from types import SimpleNamespace

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # no Triton on this platform: the references serve
    triton, tl = None, SimpleNamespace(constexpr=None)

reference = False  # set by runtime.setup

jit = (lambda function=None, **_: function or (lambda f: f)) if triton is None else triton.jit


def use_triton(tensor: torch.Tensor, backend: str | None) -> bool:
    """Whether to launch the Triton kernel for `tensor`: on CUDA unless it is float64, which the references serve, or
    on the readable path.

    `backend` "torch" or "triton" overrides the choice. Raises ValueError for another name, RuntimeError where Triton
    is asked for and not installed.
    """
    if backend is None:
        return (
            triton is not None
            and not reference
            and tensor.is_cuda
            and tensor.dtype != torch.float64
        )
    if backend not in ("torch", "triton"):
        raise ValueError(f"backend {backend!r}: give None, 'torch' or 'triton'")
    if backend == "triton" and triton is None:
        raise RuntimeError("backend 'triton': Triton is not installed; run `pip install triton`")
    return backend == "triton"


def float_of(tensor: torch.Tensor) -> torch.dtype:
    """The type in which a loss is computed: float32 for everything but float64."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
