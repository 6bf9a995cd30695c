"""Attention of one new token a row over a cache, for decoding: grouped heads, the prompt of a group stored once.

A row of a batch reads two stretches of keys: the prompt that it shares with the other samples of its group (`Prefix`),
and its own part, what was decoded since. The definition is a softmax over both together. The Triton kernels read every
key once where it is stored: a program takes one key head of one stretch, or a piece of it (split-K), for all queries
that attend to it, which are the H / K query heads of a row, and for a prompt those of up to 64 / (H / K) rows. Each
leaves (maximum, sum of exponentials, weighted values) in float32, and a second kernel merges the pieces of a row.

Lengths live on the device and the launch depends on shapes alone, so a CUDA graph can be replayed while rows grow.
"""

from typing import NamedTuple

import torch

from kernels.triton import jit, tl, triton

PROGRAMS = (
    528  # split the keys until a launch has about so many: 4 for each multiprocessor of an H200
)
LEAST = 128  # keys of a piece at the least
QUERIES = 64  # at most so many queries share a prompt's keys in one program
TILE_BYTES = 16 << 10  # of keys, and of values, read at once


class Prefix(NamedTuple):
    """Prompts that rows share: keys, values [P, K, L, E], lengths [P] and for each row its prompt, `of` [B] int64.

    `tiles`: what prefix_tiles makes of `of`; a model makes them once for all of its layers.
    """

    keys: torch.Tensor
    values: torch.Tensor
    lengths: torch.Tensor
    of: torch.Tensor
    tiles: tuple[torch.Tensor, torch.Tensor] | None = None


def prefix_tiles(of: torch.Tensor, prompts: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut the rows of every prompt into tiles of at most `rows`: (tiles [3, B // rows + min(B, prompts)], order [B]).

    `order` is the rows sorted by prompt; a column of `tiles` holds a prompt, the place in `order` of its first row and
    the number of rows, 0 in the columns that are left over. Shapes do not depend on values: no synchronisation.

    Example: of [1, 0, 1, 1], 2 prompts, 2 rows a tile: order [1, 0, 2, 3], tiles [0 1 1 1], [0 1 3 3], [1 2 1 0].
    """
    B = len(of)
    order = of.argsort(stable=True)
    counts = of.new_zeros(prompts).index_add_(0, of, torch.ones_like(of))
    number = (counts + rows - 1) // rows  # tiles of each prompt
    behind = number.cumsum(0)
    tile = torch.arange(B // rows + min(B, prompts), device=of.device)
    prompt = torch.searchsorted(behind, tile, right=True).clamp_(max=prompts - 1)
    before = (
        tile - (behind - number)[prompt]
    ) * rows  # rows of the prompt in tiles before this one
    count = (counts[prompt] - before).clamp(0, rows)
    first = ((counts.cumsum(0) - counts)[prompt] + before).clamp_(max=B - 1)
    return torch.stack([prompt, first, count]), order


def rows_per_tile(B: int, heads: int, kv_heads: int) -> int:
    """Rows whose queries share a program over a prompt's keys."""
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
    OWN: tl.constexpr,
    EXACT: tl.constexpr,
    E: tl.constexpr,
    M: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One piece of one stretch of keys, one key head: online softmax for the queries of a tile, M of them at most.

    OWN: tile b is row b and the stretch is its own; else tiles [3, T] and order [B] say who reads which prompt. EXACT:
    products in float32, for the interpreter, which cannot multiply bf16.
    """
    tile, head, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    m, e = tl.arange(0, M), tl.arange(0, WIDTH)
    if OWN:
        entry = tile
        used = m < G
        row = tl.zeros((M,), tl.int64) + tile
    else:
        entry = tl.load(tiles + tile)
        used = m < tl.load(tiles + 2 * T + tile) * G
        row = tl.load(order + tl.load(tiles + T + tile) + m // G, mask=used, other=0)
    length = tl.load(lengths + entry)
    size = (
        tl.cdiv(tl.cdiv(length, splits), BLOCK) * BLOCK
    )  # of a piece: of the length there is now, not of what may be
    begin = split * size
    end = tl.minimum(begin + size, length)
    if not OWN:
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
    """One query: its pieces, each weighed by the exponentials that it summed. Empty pieces are not read."""
    query = tl.program_id(0).to(tl.int64)
    s, e = tl.arange(0, SLOTS), tl.arange(0, WIDTH)
    mass = tl.load(total + query * slots + s, mask=s < slots, other=0.0)
    top = tl.load(peak + query * slots + s, mask=s < slots, other=-1e30)
    weight = tl.where(mass > 0, tl.exp(top - tl.max(top, 0)), 0.0)
    place = (query * slots + s)[:, None] * E + e[None, :]
    x = tl.load(out + place, mask=(mass > 0)[:, None] & (e < E)[None, :], other=0.0)
    value = tl.sum(x * weight[:, None], 0) / tl.sum(weight * mass, 0)
    tl.store(merged + query * E + e, value, mask=e < E)


def _by_triton(x: torch.Tensor, backend: str | None) -> bool:
    """Launch Triton, or compute with PyTorch, as tests do on a CPU? backend: "triton" or "torch", None by device."""
    return x.is_cuda if backend is None else backend == "triton"


def blocks(queries: int, E: int, itemsize: int) -> dict:
    """Sizes of a program of _partial_kernel for so many queries: no register is spilled, 2 fit a multiprocessor."""
    M, width = (max(16, triton.next_power_of_2(n)) for n in (queries, E))
    block = min(128, max(16, TILE_BYTES // (width * itemsize)))
    many = M > 16
    return dict(
        E=E, M=M, WIDTH=width, BLOCK=block, STAGES=2 if many else 3, num_warps=8 if many else 4
    )


def _splits(programs: int, longest: int) -> int:
    return max(1, min(triton.cdiv(PROGRAMS, programs), triton.cdiv(longest, LEAST)))


def _attention_triton(q, keys, values, lengths, prefix):
    (B, H, E), K = q.shape, keys.shape[1]
    G = H // K
    scratch = []  # (stretch, its tiles, order, number of tiles, rows of a tile, pieces)
    if prefix is not None:
        rows = rows_per_tile(B, H, K)
        tiles, order = prefix.tiles or prefix_tiles(prefix.of, len(prefix.lengths), rows)
        shared = (prefix.keys, prefix.values, prefix.lengths, tiles, order)
        scratch.append(
            (shared, tiles.shape[1], rows, _splits(triton.cdiv(B, rows) * K, prefix.keys.shape[2]))
        )
    scratch.append(((keys, values, lengths, lengths, lengths), B, 1, _splits(B * K, keys.shape[2])))
    slots, offset = sum(pieces for *_, pieces in scratch), 0
    peak, total = (torch.empty(B, H, slots, device=q.device) for _ in range(2))
    out = torch.empty(B, H, slots, E, device=q.device)
    q, merged = q.contiguous(), torch.empty_like(q, memory_format=torch.contiguous_format)
    for (k, v, length, tiles, order), T, rows, pieces in scratch:
        if k.stride()[2:] != (E, 1) or v.stride() != k.stride():
            raise ValueError(
                f"keys {k.stride()} and values {v.stride()}: both must have strides [.., .., {E}, 1]"
            )
        own = k is keys
        _partial_kernel[(T, K, pieces)](
            *(q, k, v, length, tiles, order, peak, total, out),
            *(E**-0.5, T, K, G, k.stride(0), k.stride(1), offset, slots, pieces),
            *(own, not q.is_cuda),
            **blocks(rows * G, E, q.element_size()),
        )
        offset += pieces
    sizes = (triton.next_power_of_2(n) for n in (E, slots))
    _merge_kernel[(B * H,)](peak, total, out, merged, slots, E, *sizes)
    return merged


def _attention_torch(q, keys, values, lengths, prefix):
    """The definition: the keys of each row side by side, [B, K, L + C, E], and a softmax over those in use."""
    (B, H, E), K = q.shape, keys.shape[1]
    keys, values = keys[:B], values[:B]
    seen = torch.arange(keys.shape[2], device=q.device) < lengths[:, None]  # [B, C]
    if prefix is not None:
        before = (
            torch.arange(prefix.keys.shape[2], device=q.device) < prefix.lengths[prefix.of][:, None]
        )
        seen = torch.cat([before, seen], dim=1)
        keys = torch.cat([prefix.keys[prefix.of], keys], dim=2)
        values = torch.cat([prefix.values[prefix.of], values], dim=2)
    q = q.view(B, K, H // K, E)  # heads of a group side by side: no key is repeated
    scores = torch.matmul(q * E**-0.5, keys.transpose(2, 3)).to(
        torch.promote_types(q.dtype, torch.float32)
    )
    scores = scores.masked_fill(~seen[:, None, None], -torch.inf)
    return torch.matmul(torch.softmax(scores, dim=-1).to(values.dtype), values).view(B, H, E)


def decode_attention(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    lengths: torch.Tensor,
    prefix: Prefix | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """softmax(q . k / sqrt(E)) v over the keys of each row's prompt and of its own part, [B, H, E] in q's type.

    q [B, H, E]: one new token a row; query head h reads key head h // (H / K). keys, values [at least B, K, C, E]: row
    b's own part is the first lengths[b] of row b, lengths [B] int64, on the device. A row must have one key at least,
    of its own or of its prompt. No gradient. Raises ValueError for shapes that do not belong together.
    """
    B, H, E = q.shape
    K = keys.shape[1]
    if (
        H % K
        or keys.shape != values.shape
        or keys.shape[3] != E
        or len(keys) < B
        or lengths.shape != (B,)
    ):
        raise ValueError(
            f"q {list(q.shape)}, keys {list(keys.shape)}, values {list(values.shape)}, lengths {list(lengths.shape)} "
            "must be [B, H, E], [B, K, C, E] twice, [B], H a multiple of K"
        )
    if prefix is not None and (prefix.keys.shape[1::2] != (K, E) or prefix.of.shape != (B,)):
        raise ValueError(
            f"prefix keys {list(prefix.keys.shape)} of {list(prefix.of.shape)} must be [P, {K}, L, {E}]"
        )
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
    """One head of one row: rotated (queries, keys) and written where it belongs."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i = tl.arange(0, HALF)
    inside = i < E // 2
    source = qkv + (row * (H + 2 * K) + head) * E + i
    a, b = tl.load(source, mask=inside), tl.load(source + E // 2, mask=inside)
    if head < H + K:
        c, s = (
            tl.load(cos + row * (E // 2) + i, mask=inside),
            tl.load(sin + row * (E // 2) + i, mask=inside),
        )
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
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    lengths: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    backend: str | None = None,
) -> torch.Tensor:
    """Take the new token of each row into the cache: its rotated key and its value are written behind `lengths` [B].

    qkv [B, H + 2 K, E] heads of queries, keys and values side by side, cos and sin [B, 1, E / 2] float32 of the
    rotation (pairs i, i + E / 2, in float32), keys and values [at least B, K, C, E]. Returns the rotated queries
    [B, H, E]. One launch in place of a dozen.
    """
    (B, heads, E), K = qkv.shape, keys.shape[1]
    H = heads - 2 * K
    if _by_triton(qkv, backend):
        q, qkv = qkv.new_empty(B, H, E), qkv.contiguous()
        _append_kernel[(B, heads)](
            *(qkv, cos.contiguous(), sin.contiguous(), lengths, q, keys, values),
            *(H, K, keys.stride(0), keys.stride(1), E, triton.next_power_of_2(E // 2)),
            num_warps=1,
        )
        return q
    a, b = qkv[:, : H + K].to(torch.promote_types(qkv.dtype, torch.float32)).chunk(2, dim=-1)
    rotated = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(qkv.dtype)
    place = (
        torch.arange(B, device=qkv.device)[:, None],
        torch.arange(K, device=qkv.device),
        lengths[:, None],
    )
    keys.index_put_(place, rotated[:, H:])
    values.index_put_(place, qkv[:, H + K :])
    return rotated[:, :H]
