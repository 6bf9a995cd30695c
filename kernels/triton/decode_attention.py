"""Attention of one new token a row over a cache in which the prompt of a group is stored once.

A row reads two lists of keys: those of its prompt, which it shares with the other samples of its group (`Prefix`), and
those of the tokens that it wrote. The result is a softmax over both together.

The Triton kernels read each key once where it is stored. A program takes one key head of one list, or a piece of the
list (split-K), for all queries that read it: the H / K query heads of a row; of a prompt, those of many rows. It leaves
(maximum, sum of exponentials, weighted values) in float32, and a second kernel merges the pieces of a row.

Lengths stay on the device and a launch depends on shapes alone. So a CUDA graph can be replayed while rows grow.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.triton import jit, tl, triton

PROGRAMS = (
    528  # keys are split until a launch has about as many: 4 for each multiprocessor of an H200
)
LEAST = 128  # keys of a piece at least
QUERIES = 64  # most queries that share the keys of a prompt in one program
TILE_BYTES = 16 << 10  # of keys, and of values, that are read at once


class Prefix(NamedTuple):
    """Prompts that rows share. `tiles` are those of prefix_tiles, which all layers of a model share."""

    keys: Tensor  # [P, K, L, E]
    values: Tensor  # [P, K, L, E]
    lengths: Tensor  # [P]
    prompt_of: Tensor  # [B], the prompt of each row
    tiles: tuple[Tensor, Tensor] | None = None


def prefix_tiles(prompt_of: Tensor, prompts: int, rows: int) -> tuple[Tensor, Tensor]:
    """Cut the rows of each prompt into tiles of at most `rows`: (tiles [3, N], order [B]).

    N = B // rows + min(B, prompts) depends on no value, so the host need not wait for the device. order: the rows
    sorted by prompt. A column of tiles holds a prompt, the place in `order` of its first row, and the number of its
    rows, which is 0 in columns that are not used.

    Example: prompt_of [1, 0, 1, 1], 2 prompts, 2 rows: order [1, 0, 2, 3], tiles [0 1 1 1], [0 1 3 3], [1 2 1 0].
    """
    B = len(prompt_of)
    order = prompt_of.argsort(stable=True)
    counts = prompt_of.new_zeros(prompts).index_add_(0, prompt_of, torch.ones_like(prompt_of))
    number = (counts + rows - 1) // rows  # tiles of each prompt
    end = number.cumsum(0)
    tile = torch.arange(B // rows + min(B, prompts), device=prompt_of.device)
    prompt = torch.searchsorted(end, tile, right=True).clamp_(max=prompts - 1)
    before = (tile - (end - number)[prompt]) * rows  # rows of the prompt in the tiles before
    count = (counts[prompt] - before).clamp(0, rows)
    first = ((counts.cumsum(0) - counts)[prompt] + before).clamp_(max=B - 1)
    return torch.stack([prompt, first, count]), order


def rows_per_tile(B: int, heads: int, kv_heads: int) -> int:
    """Rows whose queries share a program over the keys of a prompt."""
    return max(1, min(B, QUERIES // (heads // kv_heads)))


@jit(do_not_specialize=["T", "offset", "slots", "splits"])
def _partial_kernel(
    q,
    keys,
    values,
    lengths,
    tiles,
    order,
    peak,
    total,
    out,
    scale,
    T,
    K,
    G,
    entry_stride,
    head_stride,
    offset,
    slots,
    splits,
    PROMPT: tl.constexpr,
    EXACT: tl.constexpr,
    E: tl.constexpr,
    M: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One piece of one list of keys, one key head: online softmax for the queries of a tile, at most M.

    PROMPT: the keys are of prompts, and tiles [3, T] and order [B] say which rows read them. Else tile b is row b.
    EXACT: products in float32, for the interpreter, which cannot multiply bf16.
    """
    tile, head, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    m, e = tl.arange(0, M), tl.arange(0, WIDTH)
    if PROMPT:
        entry = tl.load(tiles + tile)
        used = m < tl.load(tiles + 2 * T + tile) * G
        row = tl.load(order + tl.load(tiles + T + tile) + m // G, mask=used, other=0)
    else:
        entry = tile
        used = m < G
        row = tl.zeros((M,), tl.int64) + tile
    # The length of now is cut into pieces, not the capacity.
    length = tl.load(lengths + entry)
    size = tl.cdiv(tl.cdiv(length, splits), BLOCK) * BLOCK
    begin = split * size
    end = tl.minimum(begin + size, length)
    if PROMPT:
        end = tl.where(tl.load(tiles + 2 * T + tile) > 0, end, begin)
    query = (row * K + head) * G + m % G
    inside = e < E
    x = tl.load(
        q + query[:, None] * E + e[None, :], mask=used[:, None] & inside[None, :], other=0.0
    )
    if EXACT:
        x = x.to(tl.float32)
    keys += entry * entry_stride + head * head_stride
    values += entry * entry_stride + head * head_stride
    top = tl.full((M,), -1e30, tl.float32)
    mass = tl.zeros((M,), tl.float32)
    acc = tl.zeros((M, WIDTH), tl.float32)
    for start in tl.range(begin, end, BLOCK, num_stages=STAGES):
        n = start + tl.arange(0, BLOCK)
        k = tl.load(
            keys + n[None, :] * E + e[:, None], mask=(n < end)[None, :] & inside[:, None], other=0.0
        )
        v = tl.load(
            values + n[:, None] * E + e[None, :],
            mask=(n < end)[:, None] & inside[None, :],
            other=0.0,
        )
        if EXACT:
            k, v = k.to(tl.float32), v.to(tl.float32)
        s = tl.where(
            (n < end)[None, :], tl.dot(x, k, input_precision="ieee") * scale, float("-inf")
        )
        new_top = tl.maximum(top, tl.max(s, 1))
        p = tl.exp(s - new_top[:, None])
        shrink = tl.exp(top - new_top)
        mass = mass * shrink + tl.sum(p, 1)
        acc = acc * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        top = new_top
    place = query * slots + offset + split
    tl.store(peak + place, top, mask=used)
    tl.store(total + place, mass, mask=used)
    tl.store(
        out + place[:, None] * E + e[None, :],
        acc,
        mask=(used & (mass > 0))[:, None] & inside[None, :],
    )


@jit
def _merge_kernel(
    peak, total, out, merged, slots, E: tl.constexpr, WIDTH: tl.constexpr, SLOTS: tl.constexpr
):
    """The pieces of one query, each weighted by the sum of its exponentials. Empty pieces are not read."""
    query = tl.program_id(0).to(tl.int64)
    s, e = tl.arange(0, SLOTS), tl.arange(0, WIDTH)
    mass = tl.load(total + query * slots + s, mask=s < slots, other=0.0)
    top = tl.load(peak + query * slots + s, mask=s < slots, other=-1e30)
    weight = tl.where(mass > 0, tl.exp(top - tl.max(top, 0)), 0.0)
    place = (query * slots + s)[:, None] * E + e[None, :]
    x = tl.load(out + place, mask=(mass > 0)[:, None] & (e < E)[None, :], other=0.0)
    value = tl.sum(x * weight[:, None], 0) / tl.sum(weight * mass, 0)
    tl.store(merged + query * E + e, value, mask=e < E)


def _by_triton(x: Tensor, backend: str | None) -> bool:
    """Launch Triton, or compute with PyTorch, as tests do on a CPU? backend: "triton", "torch", or None: by device."""
    return x.is_cuda if backend is None else backend == "triton"


def blocks(queries: int, E: int, itemsize: int) -> dict:
    """Sizes of a program of _partial_kernel for this number of queries.

    No register is spilled, and a multiprocessor runs two programs.
    """
    M, width = (max(16, triton.next_power_of_2(n)) for n in (queries, E))
    block = min(128, max(16, TILE_BYTES // (width * itemsize)))
    many = M > 16
    return dict(
        E=E, M=M, WIDTH=width, BLOCK=block, STAGES=2 if many else 3, num_warps=8 if many else 4
    )


def _splits(programs: int, longest: int) -> int:
    return max(1, min(triton.cdiv(PROGRAMS, programs), triton.cdiv(longest, LEAST)))


def _attention_triton(q, keys, values, lengths, prefix: Prefix | None) -> Tensor:
    (B, H, E), K = q.shape, keys.shape[1]
    G = H // K
    # The lists of keys: (keys, values, lengths, tiles, order), number of tiles, rows of a tile, pieces.
    lists = []
    if prefix is not None:
        rows = rows_per_tile(B, H, K)
        tiles, order = prefix.tiles or prefix_tiles(prefix.prompt_of, len(prefix.lengths), rows)
        pieces = _splits(triton.cdiv(B, rows) * K, prefix.keys.shape[2])
        lists.append(((*prefix[:3], tiles, order), tiles.shape[1], rows, pieces))
    pieces = _splits(B * K, keys.shape[2])
    lists.append(((keys, values, lengths, lengths, lengths), B, 1, pieces))

    # Partial results of all pieces, side by side.
    slots = sum(pieces for *_, pieces in lists)
    peak = torch.empty(B, H, slots, device=q.device)
    total = torch.empty(B, H, slots, device=q.device)
    out = torch.empty(B, H, slots, E, device=q.device)
    q, merged = q.contiguous(), torch.empty_like(q, memory_format=torch.contiguous_format)
    offset = 0
    for (k, v, length, tiles, order), T, rows, pieces in lists:
        if k.stride()[2:] != (E, 1) or v.stride() != k.stride():
            strides = f"keys {k.stride()} and values {v.stride()}"
            raise ValueError(f"{strides}: both must have strides [.., .., {E}, 1]")
        tensors = q, k, v, length, tiles, order, peak, total, out
        numbers = E**-0.5, T, K, G, k.stride(0), k.stride(1), offset, slots, pieces
        sizes = blocks(rows * G, E, q.element_size())
        _partial_kernel[(T, K, pieces)](
            *tensors, *numbers, PROMPT=k is not keys, EXACT=not q.is_cuda, **sizes
        )
        offset += pieces
    width, slots_width = triton.next_power_of_2(E), triton.next_power_of_2(slots)
    _merge_kernel[(B * H,)](peak, total, out, merged, slots, E, width, slots_width)
    return merged


def _attention_torch(q, keys, values, lengths, prefix: Prefix | None) -> Tensor:
    """The keys of each row side by side, [B, K, L + C, E], and a softmax over those in use."""
    (B, H, E), K = q.shape, keys.shape[1]
    keys, values = keys[:B], values[:B]
    seen = torch.arange(keys.shape[2], device=q.device) < lengths[:, None]  # [B, C]
    if prefix is not None:
        places = torch.arange(prefix.keys.shape[2], device=q.device)
        of_prompt = places < prefix.lengths[prefix.prompt_of][:, None]  # [B, L]
        seen = torch.cat([of_prompt, seen], dim=1)
        keys = torch.cat([prefix.keys[prefix.prompt_of], keys], dim=2)
        values = torch.cat([prefix.values[prefix.prompt_of], values], dim=2)
    q = q.view(B, K, H // K, E)  # query heads that share a key head side by side
    scores = torch.matmul(q * E**-0.5, keys.transpose(2, 3))
    scores = scores.to(torch.promote_types(q.dtype, torch.float32))
    scores = scores.masked_fill(~seen[:, None, None], -torch.inf)
    return torch.matmul(torch.softmax(scores, dim=-1).to(values.dtype), values).view(B, H, E)


def decode_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    prefix: Prefix | None = None,
    backend: str | None = None,
) -> Tensor:
    """softmax(q . k / sqrt(E)) v over the keys of each row's prompt and those that it wrote, [B, H, E].

    q [B, H, E]: one new token a row; query head h reads key head h // (H / K).
    keys, values [B or more, K, C, E]: row b wrote the first lengths[b] of row b. lengths [B] int64.
    A row must have a key, in its prompt or in what it wrote. No gradient.
    Raises ValueError for shapes that do not fit together.
    """
    (B, H, E), K = q.shape, keys.shape[1]
    fits = keys.shape == values.shape and keys.shape[3] == E and len(keys) >= B
    if H % K or not fits or lengths.shape != (B,):
        shapes = [list(x.shape) for x in (q, keys, values, lengths)]
        raise ValueError(
            f"q, keys, values and lengths {shapes} must be [B, H, E], [B, K, C, E] twice, [B], H a "
            "multiple of K"
        )
    if prefix is not None and (prefix.keys.shape[1::2] != (K, E) or prefix.prompt_of.shape != (B,)):
        shapes = f"{list(prefix.keys.shape)} of {list(prefix.prompt_of.shape)}"
        raise ValueError(f"prefix keys {shapes} must be [P, {K}, L, {E}]")
    attention = _attention_triton if _by_triton(q, backend) else _attention_torch
    return attention(q, keys, values, lengths, prefix)


@jit
def _append_kernel(
    qkv,
    cos,
    sin,
    lengths,
    q,
    keys,
    values,
    H,
    K,
    entry_stride,
    head_stride,
    E: tl.constexpr,
    HALF: tl.constexpr,
):
    """One head of one row: rotated if it is a query or a key, and written into q or the cache."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i = tl.arange(0, HALF)
    inside = i < E // 2
    source = qkv + (row * (H + 2 * K) + head) * E + i
    a, b = tl.load(source, mask=inside), tl.load(source + E // 2, mask=inside)
    if head < H + K:
        c = tl.load(cos + row * (E // 2) + i, mask=inside)
        s = tl.load(sin + row * (E // 2) + i, mask=inside)
        x, y = a.to(tl.float32), b.to(tl.float32)
        a, b = (x * c - y * s).to(a.dtype), (y * c + x * s).to(b.dtype)
    place = row * entry_stride + tl.load(lengths + row) * E + i
    if head < H:
        target = q + (row * H + head) * E + i
    elif head < H + K:
        target = keys + place + (head - H) * head_stride
    else:
        target = values + place + (head - H - K) * head_stride
    tl.store(target, a, mask=inside)
    tl.store(target + E // 2, b, mask=inside)


def append(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    lengths: Tensor,
    keys: Tensor,
    values: Tensor,
    backend: str | None = None,
) -> Tensor:
    """Write the rotated key and the value of each row's new token into the cache; return the rotated queries.

    qkv [B, H + 2K, E]: queries, keys and values. cos, sin [B, 1, E/2] float32: the rotation, of pairs (i, i + E/2).
    keys, values [B or more, K, C, E]: written after the first lengths[b] of row b. Returns [B, H, E].
    """
    (B, heads, E), K = qkv.shape, keys.shape[1]
    H = heads - 2 * K
    if _by_triton(qkv, backend):
        q, qkv = qkv.new_empty(B, H, E), qkv.contiguous()
        tensors = qkv, cos.contiguous(), sin.contiguous(), lengths, q, keys, values
        numbers = H, K, keys.stride(0), keys.stride(1), E, triton.next_power_of_2(E // 2)
        _append_kernel[(B, heads)](*tensors, *numbers, num_warps=1)
        return q
    a, b = qkv[:, : H + K].to(torch.promote_types(qkv.dtype, torch.float32)).chunk(2, dim=-1)
    rotated = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(qkv.dtype)
    row = torch.arange(B, device=qkv.device)[:, None]
    head = torch.arange(K, device=qkv.device)
    keys.index_put_((row, head, lengths[:, None]), rotated[:, H:])
    values.index_put_((row, head, lengths[:, None]), qkv[:, H + K :])
    return rotated[:, :H]
