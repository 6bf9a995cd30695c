"""Who attends to whom among packed tokens (`Layout`), and what each device's attention needs to know of it."""

import functools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor


class Layout:
    """Packed segments, each with an optional parent: a token sees its parent segment whole and its own causally.

    Plain packing is a list of lengths. GRPO's update packs every question once and gives each of its G completions that
    question as parent: the question's tokens go through the model once, exactly as in sampling (prefill, then fork).

    Example: Layout([3, 2, 2], parents=[-1, 0, 0]) has positions [0 1 2 | 3 4 | 3 4].

    On a CPU the attention in C++ takes segments as they lie (`families`), PyTorch's runs over padded blocks of segments
    of similar length (`buckets`): no [T, T] mask exists. On CUDA one FlexAttention block mask says the same.
    """

    def __init__(self, lengths, parents=None, device="cpu"):
        lengths = np.asarray(lengths, dtype=np.int64)
        parents = (
            np.full(len(lengths), -1) if parents is None else np.asarray(parents, dtype=np.int64)
        )
        has_parent = parents >= 0
        if (parents[parents[has_parent]] >= 0).any():
            raise ValueError("a parent segment cannot have a parent itself")
        prefix = np.where(has_parent, lengths[parents], 0)  # tokens before the segment's own
        starts = np.cumsum(lengths) - lengths
        self.lengths, self.parents, self.prefix, self.starts = lengths, parents, prefix, starts
        self.tokens = int(lengths.sum())
        self.device = torch.device(device)
        self.max_position = int((prefix + lengths).max()) if len(lengths) else 0
        self._positions = np.arange(self.tokens) - np.repeat(starts - prefix, lengths)
        self.positions = self._tensor(self._positions)  # [T]
        self.document = self._tensor(np.repeat(np.arange(len(lengths)), lengths))  # [T]
        self.parent = self._tensor(np.repeat(parents, lengths))  # [T], -1 without
        self._buckets = self._block_mask = None

    def _tensor(self, array) -> Tensor:
        with torch.inference_mode(
            False
        ):  # a layout first used in inference must serve the update's backward too
            return torch.from_numpy(np.ascontiguousarray(array)).to(self.device, non_blocking=True)

    @functools.cached_property
    def families(self) -> tuple[np.ndarray, ...]:
        """For kernels/cpu_attention.py, int64: positions [T]; starts, lengths, parents of segments; the segments with
        each parent before its children, and where each such family begins there, with the end."""
        root = np.where(self.parents < 0, np.arange(len(self.parents)), self.parents)
        members = np.lexsort((self.parents >= 0, root))
        first = np.append(np.flatnonzero(self.parents[members] < 0), len(members))
        return self._positions, self.starts, self.lengths, self.parents, members, first

    @property
    def buckets(self):
        """([(queries [N, L], keys [N, P + L], mask [N, 1, L, P + L] or None)], inverse [T]): padded token indices.

        Padding needs no mask in blocks without parents: a padded key lies behind every real query. `inverse` says where
        each token's output stands in the concatenated blocks; None says that block and packed order are the same.
        """
        if self._buckets is None:
            blocks, inverse, offset = [], np.empty(self.tokens, dtype=np.int64), 0
            for members in self._groups():
                length, start = self.lengths[members], self.starts[members]
                queries = start[:, None] + np.minimum(
                    np.arange(length.max()), length[:, None] - 1
                )  # [N, L]
                real = np.arange(length.max()) < length[:, None]
                inverse[queries[real]] = offset + np.flatnonzero(real)
                offset += real.size
                keys, mask = queries, None
                if self.parents[members[0]] >= 0:
                    prefix, first = self.prefix[members], self.starts[self.parents[members]]
                    before = first[:, None] + np.minimum(
                        np.arange(prefix.max()), prefix[:, None] - 1
                    )  # [N, P]
                    keys = np.concatenate([before, queries], axis=1)
                    seen = np.repeat(
                        (np.arange(prefix.max()) < prefix[:, None])[:, None], length.max(), axis=1
                    )
                    own = np.broadcast_to(
                        np.tri(length.max(), dtype=bool), (len(members), length.max(), length.max())
                    )
                    mask = self._tensor(np.concatenate([seen, own], axis=2)[:, None])
                blocks.append((self._tensor(queries), self._tensor(keys), mask))
            identity = len(blocks) == 1 and np.array_equal(inverse, np.arange(offset))
            self._buckets = blocks, None if identity else self._tensor(inverse)
        return self._buckets

    def _groups(self) -> Iterator[np.ndarray]:
        """Segments with and without parent apart, each cut by falling length: a block is at most half padding."""
        for kind in (self.parents < 0, self.parents >= 0):
            members = np.flatnonzero(kind & (self.lengths > 0))
            if len(members) and (self.lengths[members] == self.lengths[members[0]]).all():
                yield members
                continue
            members = members[np.argsort(-self.lengths[members], kind="stable")]
            while len(members):
                size = int((self.lengths[members] > self.lengths[members[0]] // 2).sum())
                size = len(members) if len(members) - size < 4 else size
                yield members[:size]
                members = members[size:]

    @property
    def mask_mod(self):
        """FlexAttention's rule for the same thing: own segment causally, parent segment whole."""
        document, parent = self.document, self.parent

        def rule(
            batch, head, query, key
        ):  # FlexAttention takes a method's `self` for an argument: hence a function
            own = (document[query] == document[key]) & (query >= key)
            return own | (parent[query] == document[key])

        return rule

    @property
    def block_mask(self):
        """FlexAttention's block mask over [T, T], made once per layout (CUDA)."""
        if self._block_mask is None:
            from torch.nn.attention.flex_attention import create_block_mask

            T = self.tokens
            with torch.inference_mode(False):
                self._block_mask = create_block_mask(
                    self.mask_mod, None, None, T, T, device=self.device
                )
        return self._block_mask
