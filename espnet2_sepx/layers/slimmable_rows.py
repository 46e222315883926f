"""Slimmable layers that compute only what is used (DSN): frames sorted by width.

A *piece* is a few sequences (chunks, or positions across chunks) whose activations stay in the
processor's cache. Its tokens are sorted, widest first, so that those that use block k of heads or
neurons are the first ``count[k]`` rows: every product is a narrow one over a slice, nothing is
masked. Layer norms, residual sums and feed-forwards do not mind the order; attention collects the
rows of each sequence into tables. The order is made once per utterance and axis and holds for all
layers. Where blocks are used by the same rows (all of a piece as wide), they are one product.

Legend: B batch, S chunks, C positions in a chunk, F channels, d head width, K levels, G sequences
of a piece, L their length, m tokens of a piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from espnet2_sepx.layers.kernels import compute_dtype, matmul_t, row_step
from espnet2_sepx.layers.slimmable import Ladder, SlimmableLayer, SlimmableStack, layer_macs

PIECE_TOKENS = {"cpu": 4096, "cuda": 1 << 20}
FFN_NUMBERS = {"cpu": 1 << 19, "cuda": 1 << 30}
"""Hidden activations of a feed-forward that are held at a time."""
TABLE_SHARE = 0.75
"""A sequence with less than this share of a table's positions opens a smaller table ..."""
TABLE_SCORES = 1 << 14
"""... if the table would otherwise hold so many more scores per head."""

Index = NDArray[np.int64]


@dataclass
class Table:
    """Rows of some sequences of about one length, for attention among them."""

    rows: Tensor
    """(G L,) rows of the piece; any row in padding."""
    shape: tuple[int, int]
    """(G, L)."""
    mask: Tensor | None
    """(G, 1, 1, L) added to the scores: 0, or -inf in padding. None: no padding."""


@dataclass
class HeadBlock:
    """Heads first .. last - 1, used by the first ``count`` rows."""

    first: int
    last: int
    count: int
    tables: list[Table] | None
    """None: the rows are in the order of the sequences, all whole."""
    found: Tensor | None
    """(count,) place of each row in the tables, joined."""


@dataclass
class NeuronBlock:
    """Neurons first .. last - 1, used by the first ``count`` rows."""

    first: int
    last: int
    count: int


@dataclass
class Piece:
    """Some sequences and what each of their tokens uses."""

    item: int
    sequences: slice
    """Chunks of the item, or positions in its chunks."""
    shape: tuple[int, int]
    """(G, L)."""
    order: Tensor | None
    """(m,) tokens, sequence by sequence, sorted widest first; None: all are as wide."""
    place: Tensor | None
    """(m,) where each went."""
    heads: list[HeadBlock]
    neurons: list[NeuronBlock]


def plan_pieces(
    level: Tensor, chunks: Sequence[int], ladder: Ladder, across: bool, device: torch.device
) -> list[Piece]:
    """Sort the tokens of one axis.

    Args:
        level: (B, S, C) int, level of each position, from 0.
        chunks: valid chunks of each item; others are left out.
        ladder: heads and neurons of the levels.
        across: sequences are the positions across chunks, not the chunks.
        device: where the layers run.
    """
    limit = PIECE_TOKENS.get(device.type, PIECE_TOKENS["cuda"])
    pieces = []
    for item, (values, count) in enumerate(
        zip(level.cpu().numpy().astype(np.int8), chunks, strict=True)
    ):
        table = values[:count].T if across else values[:count]  # (sequences, L)
        number = min(-(-table.size // limit), len(table))
        for part in np.array_split(np.arange(len(table)), number):
            sequences = slice(int(part[0]), int(part[-1]) + 1)
            pieces.append(_plan_piece(item, sequences, table[sequences], ladder, device))
    return pieces


def _plan_piece(
    item: int, sequences: slice, level: NDArray[np.int8], ladder: Ladder, device: torch.device
) -> Piece:
    """``level``: (G, L)."""
    order = np.argsort(-level.ravel(), kind="stable")
    ordered = level.ravel()[order]
    uniform = bool(ordered[0] == ordered[-1])
    counts = [int(np.count_nonzero(ordered >= k)) for k in range(len(ladder.heads))]
    heads = []
    for first, last, count in _merged(ladder.heads, counts):
        if uniform:
            heads.append(HeadBlock(first, last, count, None, None))
        else:
            tables, found = _tables(order[:count] // level.shape[1], device)
            heads.append(HeadBlock(first, last, count, tables, found))
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return Piece(
        item=item,
        sequences=sequences,
        shape=(level.shape[0], level.shape[1]),
        order=None if uniform else torch.from_numpy(order).to(device),
        place=None if uniform else torch.from_numpy(place).to(device),
        heads=heads,
        neurons=[NeuronBlock(*block) for block in _merged(ladder.neurons, counts)],
    )


def _merged(units: Sequence[int], counts: Sequence[int]) -> list[tuple[int, int, int]]:
    """(first unit, one past the last, rows) of blocks; neighbours with equal rows are one."""
    blocks: list[tuple[int, int, int]] = []
    start = 0
    for stop, count in zip(units, counts, strict=True):
        if stop > start and count:
            if blocks and blocks[-1][2] == count:
                blocks[-1] = (blocks[-1][0], stop, count)
            else:
                blocks.append((start, stop, count))
        start = stop
    return blocks


def _tables(sequence: Index, device: torch.device) -> tuple[list[Table], Tensor]:
    """Tables for rows of which ``sequence`` (count,) says where they belong, and where each is."""
    order = np.argsort(sequence, kind="stable")
    starts = np.flatnonzero(np.diff(sequence[order], prepend=-1))
    lengths = np.diff(starts, append=len(order))
    longest = np.argsort(-lengths, kind="stable")
    starts, lengths = starts[longest], lengths[longest]
    found = np.empty(len(order), dtype=np.int64)
    tables, offset = [], 0
    for part in _cuts(lengths):
        length = int(lengths[part.start])
        count = lengths[part, None]
        position = np.arange(length)[None]
        real = position < count  # (G, L)
        rows = order[np.where(real, starts[part, None] + position, 0)]
        found[rows[real]] = offset + np.flatnonzero(real)
        offset += real.size
        mask = None
        if not real.all():
            mask = torch.from_numpy(np.where(real, 0.0, -np.inf).astype(np.float32))
            mask = mask.to(device)[:, None, None]
        tables.append(Table(torch.from_numpy(rows.ravel()).to(device), real.shape, mask))
    return tables, torch.from_numpy(found).to(device)


def _cuts(lengths: Index) -> Iterator[slice]:
    """Cut descending lengths where tables of one length would be mostly padding."""
    start = 0
    while start < len(lengths):
        longest = int(lengths[start])
        rest = lengths[start:]
        wasted = np.cumsum((longest**2 - rest**2)[::-1])[::-1]  # from each one on
        cut = np.flatnonzero((rest < TABLE_SHARE * longest) & (wasted > TABLE_SCORES))
        stop = start + int(cut[0]) if len(cut) else len(lengths)
        yield slice(start, stop)
        start = stop


def run(
    stack: SlimmableStack,
    x: Tensor,
    table: Tensor,
    pieces: Sequence[Piece],
    across: bool,
    out: Tensor,
) -> None:
    """A stack on ``x (B, S, C, F)`` plus its positions, outside of any graph.

    Args:
        stack: its layers.
        x: left as it is.
        table: encoding of each position, (at least L, F).
        pieces: of ``plan_pieces``.
        across: as they were planned.
        out: (B, S, C, F), where the result goes; invalid chunks stay as they are.
    """
    step = row_step(x)
    for piece in pieces:
        sequences, length = piece.shape
        m = sequences * length
        part = x.new_empty(m + (-m % step), x.shape[-1])  # whole steps
        part[m:] = 0.0
        torch.add(_view(x, piece, across), table[:length], out=part[:m].view(*piece.shape, -1))
        if piece.order is not None:
            part[:m] = part.index_select(0, piece.order)
        for layer in stack.layers:
            assert isinstance(layer, SlimmableLayer)
            _add_attention(layer, part, piece, step)
            _add_ffn(layer, part, piece, step)
        done = stack.norm(part[:m])
        if piece.place is not None:
            done = done.index_select(0, piece.place)
        _view(out, piece, across).copy_(done.view(*piece.shape, -1))


def _view(x: Tensor, piece: Piece, across: bool) -> Tensor:
    """The piece's sequences of ``x (B, S, C, ...)``: (G, L, ...)."""
    item = x[piece.item]
    if across:
        return item[: piece.shape[1], piece.sequences].transpose(0, 1)
    return item[piece.sequences]


def _add_attention(layer: SlimmableLayer, x: Tensor, piece: Piece, step: int) -> None:
    """x += attention(norm1(x)) of a piece, rows of padding included."""
    attention = layer.attention
    dtype = compute_dtype(x)
    z = layer.norm1(x).to(dtype)
    bias: Tensor | None = attention.out.bias.to(dtype)
    for block in piece.heads:
        qkv_weight, qkv_bias, out_weight = attention.block(block.first, block.last, dtype)
        rows = block.count + (-block.count % step)
        qkv = matmul_t(z[:rows], qkv_weight, qkv_bias)
        y = _attend(qkv, block, piece.shape, attention.head_dim)
        if rows > len(y):
            y = F.pad(y, (0, 0, 0, rows - len(y)))
        x[: block.count] += matmul_t(y, out_weight, bias)[: block.count]
        bias = None  # the first block has all rows


def _attend(qkv: Tensor, block: HeadBlock, shape: tuple[int, int], head_dim: int) -> Tensor:
    """From a block's projections ``(rows, 3 heads d)`` its values ``(count, heads d)``."""
    if block.tables is None:
        return _attend_table(qkv[: block.count], shape, None, head_dim)
    parts = [
        _attend_table(qkv.index_select(0, table.rows), table.shape, table.mask, head_dim)
        for table in block.tables
    ]
    joined = parts[0] if len(parts) == 1 else torch.cat(parts)
    assert block.found is not None
    return joined.index_select(0, block.found)


def _attend_table(
    qkv: Tensor, shape: tuple[int, int], mask: Tensor | None, head_dim: int
) -> Tensor:
    q, k, v = qkv.view(*shape, 3, -1, head_dim).permute(2, 0, 3, 1, 4)  # (G, heads, L, d)
    mask = None if mask is None else mask.to(q.dtype)
    y = F.scaled_dot_product_attention(q, k, v, mask)
    return y.transpose(1, 2).reshape(len(qkv), -1)


def _add_ffn(layer: SlimmableLayer, x: Tensor, piece: Piece, step: int) -> None:
    """x += ffn(norm2(x)) of a piece, rows of padding included."""
    dtype = compute_dtype(x)
    ffn = layer.ffn
    blocks = [(block, ffn.block(block.first, block.last, dtype)) for block in piece.neurons]
    widest = max(block.last - block.first for block in piece.neurons)
    tokens = FFN_NUMBERS.get(x.device.type, FFN_NUMBERS["cuda"]) // widest
    start = 0
    for part in x.split(max(step, tokens - tokens % step)):
        z = layer.norm2(part).to(dtype)
        bias: Tensor | None = ffn.linear2.bias.to(dtype)
        for block, (w1, b1, w2) in blocks:
            count = min(block.count - start, len(part))
            if count <= 0:
                break
            rows = z[: count + (-count % step)]
            part[:count] += matmul_t(matmul_t(rows, w1, b1).relu_(), w2, bias)[:count]
            bias = None
        start += len(part)


def macs(
    pieces: Sequence[Piece], shape: Sequence[int], dim: int, head_dim: int, across: bool
) -> Tensor:
    """What one layer executes for each token, ``(B, S, C)`` float64 on the CPU; products only.

    Rows that round a product up are left out, padding of attention tables is not.
    """
    total = torch.zeros(*shape, dtype=torch.float64)
    for piece in pieces:
        cost = torch.zeros(piece.shape[0] * piece.shape[1], dtype=torch.float64)
        for heads in piece.heads:
            keys = _keys(heads, piece.shape)
            cost[: heads.count] += layer_macs(dim, head_dim, heads.last - heads.first, 0, 0)
            cost[: heads.count] += 2.0 * head_dim * (heads.last - heads.first) * keys
        for neurons in piece.neurons:
            cost[: neurons.count] += layer_macs(dim, head_dim, 0, neurons.last - neurons.first, 0)
        if piece.place is not None:
            cost = cost[piece.place.cpu()]
        _view(total, piece, across).copy_(cost.view(piece.shape))
    return total


def _keys(block: HeadBlock, shape: tuple[int, int]) -> Tensor:
    """Scores per head that are computed for each row, with the padding of its table: (count,)."""
    if block.tables is None:
        return torch.full((block.count,), float(shape[1]), dtype=torch.float64)
    assert block.found is not None
    parts = []
    for table in block.tables:
        sequences, length = table.shape
        real = torch.full((sequences,), float(length), dtype=torch.float64)
        if table.mask is not None:
            real = (table.mask == 0).sum((1, 2, 3)).double().cpu()
        parts.append((length**2 / real).repeat_interleave(length))
    return torch.cat(parts)[block.found.cpu()]
