"""Attention over packed segments by PyTorch's scaled_dot_product_attention, over padded blocks of similar length.

No [T, T] scores or masks exist. It serves every device and type.
"""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import accelerator
from kernels.cases import attention_cases
from model import Layout, rotate

Bucket = tuple[Tensor, Tensor, Tensor | None]


def buckets(layout) -> tuple[list[Bucket], Tensor | None]:
    """([(queries [N, L], keys [N, P + L], mask [N, 1, L, P + L] or None)], inverse [T]): padded token indices.

    Blocks without parents need no mask for their padding: a padded key lies behind every real query. `inverse` says
    where each token's output stands in the concatenated blocks; None: blocks and batch have the same order.
    """
    if "buckets" not in layout.cache:
        layout.cache["buckets"] = _make_buckets(layout)
    return layout.cache["buckets"]


def _make_buckets(layout):
    blocks, inverse, offset = [], np.empty(layout.tokens, dtype=np.int64), 0
    for members in _groups(layout):
        length, start = layout.lengths[members], layout.starts[members]
        L = length.max()
        queries = start[:, None] + np.minimum(np.arange(L), length[:, None] - 1)  # [N, L]
        real = np.arange(L) < length[:, None]
        inverse[queries[real]] = offset + np.flatnonzero(real)
        offset += real.size
        keys, mask = queries, None
        if layout.parents[members[0]] >= 0:
            prefix, first = layout.prefix[members], layout.starts[layout.parents[members]]
            place = np.arange(prefix.max())
            before = first[:, None] + np.minimum(place, prefix[:, None] - 1)  # [N, P]
            keys = np.concatenate([before, queries], axis=1)
            seen = np.repeat((place < prefix[:, None])[:, None], L, axis=1)  # [N, L, P]
            causal = np.broadcast_to(np.tri(L, dtype=bool), (len(members), L, L))
            mask = layout.tensor(np.concatenate([seen, causal], axis=2)[:, None])
        blocks.append((layout.tensor(queries), layout.tensor(keys), mask))
    same_order = len(blocks) == 1 and np.array_equal(inverse, np.arange(offset))
    return blocks, None if same_order else layout.tensor(inverse)


def _groups(layout) -> Iterator[np.ndarray]:
    """Segments with and without parent apart, each cut by falling length: a block is at most half padding."""
    for kind in (layout.parents < 0, layout.parents >= 0):
        members = np.flatnonzero(kind & (layout.lengths > 0))
        if len(members) and (layout.lengths[members] == layout.lengths[members[0]]).all():
            yield members
            continue
        members = members[np.argsort(-layout.lengths[members], kind="stable")]
        while len(members):
            size = int((layout.lengths[members] > layout.lengths[members[0]] // 2).sum())
            size = len(members) if len(members) - size < 4 else size
            yield members[:size]
            members = members[size:]


def takes_layout(layout, window: int) -> bool:
    """Is it a Layout as model.py makes it, no subclass and without methods of its own? Does the window hide nothing?"""
    if window and layout.max_position > window:
        return False
    return type(layout) is Layout and "segments" not in vars(layout)


@accelerator(
    "model.attention",
    stands_for=["model.Layout"],
    takes=lambda qkv, rope, layout, heads, window=0: takes_layout(layout, window),
    cases=attention_cases,
)
def attention(qkv: Tensor, rope: Tensor, layout, heads: int, window: int = 0) -> Tensor:
    kv_heads = (qkv.shape[1] - heads) // 2
    cos, sin = rope[:, layout.positions, None]  # [T, 1, E/2]
    qk, v = qkv.split([heads + kv_heads, kv_heads], dim=1)
    q, k = rotate(qk, cos, sin).split([heads, kv_heads], dim=1)
    blocks, inverse = buckets(layout)
    outputs = []
    for queries, keys, mask in blocks:
        if inverse is None:
            parts = (x.unflatten(0, queries.shape) for x in (q, k, v))
        else:  # index_select: its backward is twice as fast as that of indexing
            pairs = (q, queries), (k, keys), (v, keys)
            parts = (x.index_select(0, n.flatten()).unflatten(0, n.shape) for x, n in pairs)
        qb, kb, vb = (part.transpose(1, 2) for part in parts)  # [N, heads, L or P + L, E]
        grouped, causal = heads != kv_heads, mask is None
        out = F.scaled_dot_product_attention(
            qb, kb, vb, attn_mask=mask, is_causal=causal, enable_gqa=grouped
        )
        outputs.append(out.transpose(1, 2).reshape(queries.numel(), -1))
    out = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
    return out if inverse is None else out.index_select(0, inverse)
