"""SepFormer (Subakan et al., 2021), the standard one and SepFormer-Light, after SpeechBrain.

Dual-path: a Transformer within each chunk, then one across the chunks at each position, repeated.
Not here: causal or streaming operation (norms and attention see the whole utterance).

Legend: B batch, T frames, F channels, K chunk size, S chunks, J outputs.
"""

from __future__ import annotations

from collections import OrderedDict

from espnet2.enh.separator.abs_separator import AbsSeparator
from torch import Tensor, nn

from espnet2_sepx.layers.dual_path import GlobalNorm, Segmentation
from espnet2_sepx.layers.kernels import linear
from espnet2_sepx.layers.sepformer import DualPathBlock
from espnet2_sepx.separators.masking import (
    NONLINEAR,
    apply_masks,
    check_at_least_one,
    check_one_of,
    features,
    gated_tanh,
)


class SepFormerSeparator(AbsSeparator):
    """Separator over ESPnet's ``conv`` encoder and decoder.

    The defaults are the standard model with 256 encoder channels; SepFormer-Light has 128 channels
    and ``ffn_dim`` 512.

    Args:
        input_dim: F.
        num_spk: number of speakers.
        num_blocks: dual-path blocks.
        intra_layers, inter_layers: Transformer layers within and across chunks, per block.
        num_heads: of attention.
        ffn_dim: width of feed-forwards.
        chunk_size: K frames, even.
        overlap: of chunks, 0.5 or 0.
        pad_mode: "always" (SpeechBrain's, with overlap) or "minimal"; without overlap, the paper's
            variant is "minimal".
        nonlinear: of the masks, "relu", "sigmoid" or "tanh".
        predict_noise: one more mask, for ``others["noise1"]``.
        dropout: in the Transformers.
    """

    def __init__(
        self,
        input_dim: int,
        num_spk: int = 2,
        num_blocks: int = 2,
        intra_layers: int = 8,
        inter_layers: int = 8,
        num_heads: int = 8,
        ffn_dim: int = 1024,
        chunk_size: int = 250,
        overlap: float = 0.5,
        pad_mode: str = "always",
        nonlinear: str = "relu",
        predict_noise: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_at_least_one(
            input_dim=input_dim,
            num_spk=num_spk,
            num_blocks=num_blocks,
            intra_layers=intra_layers,
            inter_layers=inter_layers,
        )
        check_one_of(tuple(NONLINEAR), nonlinear=nonlinear)
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
        self._num_spk = num_spk
        self.num_outputs = num_spk + predict_noise
        self.nonlinear = NONLINEAR[nonlinear]
        self.segmentation = Segmentation(chunk_size, overlap, pad_mode)
        self.input_norm = GlobalNorm(input_dim)
        self.bottleneck = nn.Linear(input_dim, input_dim, bias=False)
        self.blocks = nn.ModuleList(
            DualPathBlock(input_dim, intra_layers, inter_layers, num_heads, ffn_dim, dropout)
            for _ in range(num_blocks)
        )
        self.prelu = nn.PReLU()
        self.expand = nn.Linear(input_dim, self.num_outputs * input_dim)  # row j F + f
        self.output = nn.Linear(input_dim, input_dim)
        self.output_gate = nn.Linear(input_dim, input_dim)
        self.mask = nn.Linear(input_dim, input_dim, bias=False)

    @property
    def num_spk(self) -> int:
        return self._num_spk

    def forward(
        self, input: Tensor, ilens: Tensor, additional: dict | None = None
    ) -> tuple[list[Tensor], Tensor, OrderedDict]:
        """Separate a batch of features.

        Args:
            input: (B, T, F), real; or complex, then masks are computed from magnitudes.
            ilens: valid frames (B,).
            additional: unused.

        Returns:
            masked features of the speakers, (B, T, F) each, zero behind ``ilens``; ``ilens``;
            others: ``mask_spk{n}`` (B, T, F), detached, and ``noise1`` (B, T, F) if asked for.
        """
        input, x, padding = features(input, ilens)
        frames = x.shape[1]
        lengths = (frames,) * x.shape[0] if padding is None else padding.lengths
        counts = tuple(self.segmentation.num_chunks(n) for n in lengths)
        x = linear(self.input_norm(x, None if padding is None else lengths), self.bottleneck.weight)
        if padding is not None:
            x = x * padding.like(x)  # the norm's bias
        x = self.segmentation.split(x)
        for block in self.blocks:
            x = block(x, counts)
        masks = self._masks(x, frames)
        outputs, others = apply_masks(input, masks, self.num_spk)
        return outputs, ilens, others

    def _masks(self, x: Tensor, frames: int) -> list[Tensor]:
        """Chunks ``(B, S, K, F)`` to one mask (B, T, F) per output."""
        x = self.prelu(x)
        masks = []
        for weight, bias in zip(
            self.expand.weight.chunk(self.num_outputs),
            self.expand.bias.chunk(self.num_outputs),
            strict=True,
        ):
            y = self.segmentation.merge(linear(x, weight, bias), frames)
            value = linear(y, self.output.weight, self.output.bias)
            gate = linear(y, self.output_gate.weight, self.output_gate.bias)
            masks.append(self.nonlinear(linear(gated_tanh(value, gate), self.mask.weight)))
        return masks
