"""Attention of decoding: PyTorch's version against a loop over rows and heads in float64; tiles; shapes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.triton.decode_attention import Prefix, append, decode_attention, prefix_tiles
from model import rotate

# B, H, K, E, capacity of a row, prompts, most tokens of a prompt
SHAPES = {
    "one row": (1, 4, 4, 16, 40, 1, 30),
    "H = K": (6, 2, 2, 16, 70, 2, 50),
    "H / K = 4, E no power of two": (5, 8, 2, 24, 150, 3, 90),
    "one key head": (3, 5, 1, 40, 9, 2, 5),
    "long": (2, 4, 2, 8, 1100, 2, 1300),
    "many rows of a prompt": (36, 2, 1, 8, 5, 2, 20),
}


def inputs(name, dtype=torch.float32, seed=0, device="cpu"):
    """(q, keys, values, lengths, prefix): rows that wrote nothing, a token, all that fits. Unused places are NaN."""
    B, H, K, E, C, P, L = SHAPES[name]
    draw = torch.Generator().manual_seed(seed)

    def stretch(n, size, lengths):
        x = torch.randn(n, K, size, E, generator=draw)
        x[(torch.arange(size) >= lengths[:, None])[:, None].expand(n, K, size)] = torch.nan
        return x.to(device, dtype)

    lengths = torch.randint(0, C + 1, (B,), generator=draw)
    lengths[:3] = torch.tensor([0, 1, C])[:B]
    size = torch.cat([torch.randint(1, L + 1, (P - 1,), generator=draw), torch.tensor([L])])
    rows = torch.cat([lengths, torch.tensor([3, 3])])  # a cache may have more rows than are in use
    of = torch.randint(0, P, (B,), generator=draw).to(device)
    prefix = Prefix(stretch(P, L, size), stretch(P, L, size), size.to(device), of)
    q = torch.randn(B, H, E, generator=draw).to(device, dtype)
    return (
        q,
        stretch(B + 2, C, rows.clamp(max=C)),
        stretch(B + 2, C, rows.clamp(max=C)),
        lengths.to(device),
        prefix,
    )


def by_hand(q, keys, values, lengths, prefix):
    """A row and a head at a time, in float64."""
    (B, H, E), out = q.shape, torch.zeros(q.shape, dtype=torch.float64)
    for b in range(B):
        for h in range(H):
            head = h // (H // keys.shape[1])
            k, v = keys[b, head, : lengths[b]].double(), values[b, head, : lengths[b]].double()
            if prefix is not None:
                p = prefix.prompt_of[b]
                k = torch.cat([prefix.keys[p, head, : prefix.lengths[p]].double(), k])
                v = torch.cat([prefix.values[p, head, : prefix.lengths[p]].double(), v])
            out[b, h] = torch.softmax(k @ q[b, h].double() / E**0.5, 0) @ v
    return out


def unmarked(x):
    """PyTorch multiplies unused places by 0, so they must not be NaN."""
    q, keys, values, lengths, prefix = x
    prefix = prefix._replace(keys=prefix.keys.nan_to_num(), values=prefix.values.nan_to_num())
    return q, keys.nan_to_num(), values.nan_to_num(), lengths, prefix


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("shared", [True, False])
def test_a_softmax_over_the_prompt_and_what_the_row_wrote(name, shared):
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        q, keys, values, lengths, prefix = unmarked(inputs(name, dtype))
        if not shared:
            prefix, lengths = None, lengths.clamp(min=1)
        found = decode_attention(q, keys, values, lengths, prefix)
        assert found.dtype == dtype
        exact = by_hand(q, keys, values, lengths, prefix)
        torch.testing.assert_close(found.double(), exact, atol=tolerance, rtol=tolerance)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.integers(1, 7))
def test_tiles_hold_every_row_once_and_no_two_prompts(of, rows):
    tiles, order = prefix_tiles(torch.tensor(of), 5, rows)
    assert tiles.shape == (3, len(of) // rows + min(len(of), 5))
    held = []
    for prompt, first, count in tiles.T.tolist():
        assert 0 <= count <= rows and 0 <= prompt < 5 and 0 <= first < len(of)
        members = order[first : first + count].tolist()
        assert len(members) == count and {of[row] for row in members} <= {prompt}
        held += members
    assert sorted(held) == list(range(len(of)))
    used = [prompt for prompt, _, count in tiles.T.tolist() if count]
    assert len(used) == sum(
        -(-of.count(p) // rows) for p in range(5)
    )  # no more programs read a prompt than need be


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_append_rotates_and_writes(dtype):
    """By model.rotate, the place of every other key and value untouched."""
    B, H, K, E, C = 5, 6, 2, 12, 9
    draw = torch.Generator().manual_seed(0)
    qkv = torch.randn(B, H + 2 * K, E, generator=draw).to(dtype)
    angle = torch.randn(B, 1, E // 2, generator=draw)
    lengths = torch.tensor([0, 8, 3, 3, 1])
    before = torch.randn(2, B + 1, K, C, E, generator=draw).to(dtype)
    keys, values = before.clone()
    q = append(qkv, angle.cos(), angle.sin(), lengths, keys, values)
    rotated = rotate(qkv[:, : H + K], angle.cos(), angle.sin())
    assert torch.equal(q, rotated[:, :H])
    for b in range(B):
        assert torch.equal(keys[b, :, lengths[b]], rotated[b, H:])
        assert torch.equal(values[b, :, lengths[b]], qkv[b, H + K :])
        keys[b, :, lengths[b]], values[b, :, lengths[b]] = before[:, b, :, lengths[b]]
    assert torch.equal(torch.stack([keys, values]), before)


def test_errors():
    q, keys, values, lengths, prefix = inputs("H = K")
    for wrong in (
        (q[:, :1], keys, values, lengths),
        (q, keys, values[:, :, 1:], lengths),
        (q, keys[:3], values[:3], lengths),
        (q, keys, values, lengths[1:]),
    ):
        with pytest.raises(ValueError, match=r"\[B, H, E\], \[B, K, C, E\] twice"):
            decode_attention(*wrong)
    with pytest.raises(ValueError, match="prefix keys"):
        decode_attention(q, keys, values, lengths, prefix._replace(prompt_of=prefix.prompt_of[1:]))
