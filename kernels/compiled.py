"""torch.compile of a transformer's blocks: what stands between the matrix products, in one pass over memory.

It compiles the definitions as they stand, so that an edit takes effect here too.
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
