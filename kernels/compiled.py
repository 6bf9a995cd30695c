"""Two switches of a transformer's blocks: torch.compile, and matrix products in bfloat16.

torch.compile takes the definitions as they stand, so that an edit takes effect here too. It makes one pass over memory
of what stands between the matrix products.
"""

import functools
from collections.abc import Callable

import torch


@functools.cache
def _compiled(function: Callable) -> Callable:
    """Compiled at first use, once for all layers and all numbers of tokens."""
    return torch.compile(function, dynamic=True)


def compile_blocks(model: torch.nn.Module) -> None:
    """Compile what a block computes before and after attention (on a CPU this needs g++)."""
    for block in model.layers:
        block.before = functools.partial(_compiled(type(block).before), block)
        block.after = functools.partial(_compiled(type(block).after), block)


def is_compiled(method) -> bool:
    """Is this a method of a block that `compile_blocks` has compiled?"""
    return isinstance(method, functools.partial) and hasattr(
        method.func, "_torchdynamo_orig_callable"
    )


def multiply_in(model: torch.nn.Module, dtype: torch.dtype, store: bool = False) -> None:
    """Compute the matrix products of the blocks in this type, for CPUs that multiply bfloat16 faster (AMX).

    store: also keep the weights in it, which suits a copy that is not trained.
    """
    for module in model.layers.modules():
        if hasattr(module, "multiply"):  # model.Linear
            module.multiply = dtype
            if store:
                module.requires_grad_(False).to(dtype)
