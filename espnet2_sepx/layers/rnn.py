"""Recurrent module, the substitute of a Conformer module in the paper's Table 2.

Legend: B batch, T frames, K bands, N channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from espnet2_sepx.layers.norms import Padding, standardise

RNN_TYPES = {"gru": nn.GRU, "lstm": nn.LSTM}


class RNNModule(nn.Module):
    """x + Linear(bidirectional RNN(GroupNorm(1, N)(x))), hidden width 2N per direction.

    Shape: ``(B, T, K, N) -> (B, T, K, N)``.

    Args:
        dim: N.
        axis: "time" or "frequency", along which the RNN runs.
        rnn_type: "gru" or "lstm".
        dropout: before the residual sum.
    """

    def __init__(
        self, dim: int, axis: str, rnn_type: str = "gru", dropout: float = 0.0, eps: float = 1e-5
    ) -> None:
        super().__init__()
        if rnn_type not in RNN_TYPES:
            raise ValueError(f"rnn_type must be one of {tuple(RNN_TYPES)}, got {rnn_type!r}")
        self.axis = axis
        self.eps = eps
        self.norm_weight = nn.Parameter(torch.ones(dim))
        self.norm_bias = nn.Parameter(torch.zeros(dim))
        self.rnn = RNN_TYPES[rnn_type](dim, 2 * dim, batch_first=True, bidirectional=True)
        self.linear = nn.Linear(4 * dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, padding: Padding | None = None) -> Tensor:
        y = standardise(x, (1, 2, 3), padding, self.eps) * self.norm_weight + self.norm_bias
        y = self._over_time(y, padding) if self.axis == "time" else self._over_bands(y)
        return x + self.dropout(self.linear(y))

    def _over_bands(self, y: Tensor) -> Tensor:
        batch, frames = y.shape[:2]
        return self.rnn(y.flatten(0, 1))[0].unflatten(0, (batch, frames))

    def _over_time(self, y: Tensor, padding: Padding | None) -> Tensor:
        batch, frames, bands = y.shape[:3]
        rows = y.transpose(1, 2).flatten(0, 1)  # (B K, T, N)
        if padding is None:
            rows = self.rnn(rows)[0]
        else:  # the backward direction must start at each item's own last frame
            lengths = torch.tensor(padding.lengths).repeat_interleave(bands)
            packed = pack_padded_sequence(rows, lengths, batch_first=True, enforce_sorted=False)
            rows, _ = pad_packed_sequence(
                self.rnn(packed)[0], batch_first=True, total_length=frames
            )
        return rows.unflatten(0, (batch, bands)).transpose(1, 2)
