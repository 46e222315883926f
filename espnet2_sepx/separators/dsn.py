"""DSN: dynamic slimmable SepFormer (Elminshawi et al., "Dynamic Slimmable Networks for Efficient
Speech Separation").

A SepFormer whose Transformer layers run at a width that a small gate chooses for every frame: few
heads and neurons in silence, all of them where speakers overlap. With a single level it is a static
network of that width, without a gate and with the weights of that width only.

Training computes everything and masks (gradients reach the gate); inference sorts the frames by
width and computes only what is used. Not here: causal or streaming operation.

Legend: B batch, T frames, F channels, S chunks, C chunk size, K levels, J speakers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from espnet2.enh.separator.abs_separator import AbsSeparator
from torch import Tensor, nn

from espnet2_sepx.layers.cost_track import CostTrack
from espnet2_sepx.layers.dual_path import GlobalNorm, Segmentation
from espnet2_sepx.layers.gating import Gate, choose
from espnet2_sepx.layers.kernels import linear
from espnet2_sepx.layers.norms import Padding
from espnet2_sepx.layers.slimmable import Ladder, layer_macs
from espnet2_sepx.layers.slimmable_dual_path import (
    ChunkMap,
    MaskedPlan,
    Plan,
    SlimmableDualPathBlock,
    SparsePlan,
)
from espnet2_sepx.separators.masking import (
    NONLINEAR,
    apply_masks,
    check_at_least_one,
    check_one_of,
    features,
    gated_tanh,
    level_of,
)

EXECUTION = ("auto", "masked", "sparse")
MAX_WIDTHS = 32
"""Different widths that one external track may have."""

External = float | Sequence[float] | Tensor | None


@dataclass(frozen=True)
class Decision:
    """The width of every frame."""

    widths: tuple[float, ...]
    """Of the K levels, ascending."""
    chosen: Tensor
    """One-hot (B, T, K); in the graph where the gate chose."""
    gated: Tensor
    """(B,) bool: the gate chose, not dropout or somebody outside."""
    gate_utilization: Tensor
    """The gate's own choice (B, T), detached; where there is none, what is used."""
    logits: Tensor | None
    """Of the gate (B, T, K), detached."""

    @property
    def utilization(self) -> Tensor:
        """(B, T)."""
        return (self.chosen * self.chosen.new_tensor(self.widths)).sum(-1)


@dataclass(frozen=True)
class UtilizationRecord:
    """What one forward pass used, for reports; on the CPU."""

    utilization: Tensor
    """(B, T) float32."""
    logits: Tensor | None
    """(B, T, K) of the gate; None without one."""
    valid: Tensor
    """bool (B, T)."""


class DSNSeparator(AbsSeparator):
    """Separator over ESPnet's ``conv`` encoder and decoder.

    Args:
        input_dim: F.
        num_spk: J.
        levels: widths in (0, 1], ascending. A single one is a static network.
        num_blocks: dual-path blocks.
        intra_layers, inter_layers: Transformer layers within and across chunks, per block.
        num_heads: of attention at width 1.
        ffn_dim: of feed-forwards at width 1.
        chunk_size: C frames, even; chunks overlap by one half.
        nonlinear: of the masks, "relu", "sigmoid" or "tanh".
        gate_dim, gate_ffn_dim, gate_pool_frames, gate_pool_align: see ``Gate``.
        temperature: of the gate's softmax in training.
        gate_dropout: probability that, in training, an utterance runs at one level drawn evenly
            instead of the gate's; prepares the network for ``external_utilization``.
        external_utilization: widths to use instead of the gate's, up to the widest level: one
            number, or a track of one per frame, (T,) or (B, T), of at most 32 different ones; they
            need not be among ``levels``.
        compute_price: logit units that width 1 costs in inference; above 0 the gate gets thriftier,
            below 0 more lavish.
        execution: "sparse" computes only what is used, "masked" everything; "auto" is masked where
            gradients are recorded, else sparse.
        level_norm: divide the features by their level, so that the norms' epsilon is as small for
            quiet inputs as for loud ones.

    Attributes:
        external_utilization, compute_price, execution: as above, may be set at any time.
        record_utilization: set true to have every forward pass fill ``last_utilization``.
        last_utilization: UtilizationRecord.
        record_cost: set true to have every forward pass fill ``last_cost``.
        last_cost: CostTrack of the Transformer layers; densest is the widest level for all frames.
    """

    def __init__(
        self,
        input_dim: int,
        num_spk: int = 2,
        levels: Sequence[float] = (0.125, 1.0),
        num_blocks: int = 2,
        intra_layers: int = 4,
        inter_layers: int = 4,
        num_heads: int = 8,
        ffn_dim: int = 1024,
        chunk_size: int = 50,
        nonlinear: str = "relu",
        gate_dim: int = 32,
        gate_ffn_dim: int = 128,
        gate_pool_frames: int = 64,
        gate_pool_align: str = "centre",
        temperature: float = 1.0,
        gate_dropout: float = 0.3,
        external_utilization: External = None,
        compute_price: float = 0.0,
        execution: str = "auto",
        level_norm: bool = True,
    ) -> None:
        super().__init__()
        check_at_least_one(input_dim=input_dim, num_spk=num_spk, num_blocks=num_blocks)
        check_one_of(tuple(NONLINEAR), nonlinear=nonlinear)
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        if not 0.0 <= gate_dropout <= 1.0:
            raise ValueError(f"gate_dropout must lie in [0, 1], got {gate_dropout}")
        self.levels = tuple(float(level) for level in levels)
        self.num_heads, self.ffn_dim = num_heads, ffn_dim
        self._ladder(self.levels)  # checks them
        self._num_spk = num_spk
        self.nonlinear = NONLINEAR[nonlinear]
        self.temperature = temperature
        self.level_norm = level_norm
        self.gate_dropout = gate_dropout
        self.compute_price = compute_price
        self.external_utilization = external_utilization
        self.execution = execution
        self.record_utilization = self.record_cost = False
        self.last_utilization: UtilizationRecord | None = None
        self.last_cost: CostTrack | None = None

        self.segmentation = Segmentation(chunk_size)
        self.gate: Gate | None = None
        if len(self.levels) > 1:
            self.gate = Gate(
                input_dim,
                len(self.levels),
                gate_dim,
                gate_ffn_dim,
                chunk_size,
                gate_pool_frames,
                gate_pool_align,
            )
        self.input_norm = GlobalNorm(input_dim)
        self.bottleneck = nn.Linear(input_dim, input_dim, bias=False)
        self.blocks = nn.ModuleList(
            SlimmableDualPathBlock(
                input_dim, intra_layers, inter_layers, num_heads, ffn_dim, self.levels[-1]
            )
            for _ in range(num_blocks)
        )
        self.prelu = nn.PReLU()
        self.expand = nn.Linear(input_dim, num_spk * input_dim)  # row j F + f
        self.output = nn.Linear(input_dim, input_dim)
        self.output_gate = nn.Linear(input_dim, input_dim)
        self.mask = nn.Linear(input_dim, input_dim, bias=False)

    @property
    def num_spk(self) -> int:
        return self._num_spk

    @property
    def execution(self) -> str:
        return self._execution

    @execution.setter
    def execution(self, value: str) -> None:
        check_one_of(EXECUTION, execution=value)
        self._execution = value

    @property
    def external_utilization(self) -> Tensor | None:
        return self._external

    @external_utilization.setter
    def external_utilization(self, value: External) -> None:
        self._external: Tensor | None = None
        if value is None:
            return
        track = torch.as_tensor(value, dtype=torch.float64)
        widest = self.levels[-1]
        if track.dim() > 2 or not bool(((track > 0) & (track <= widest)).all()):
            raise ValueError(
                f"external_utilization must be one number, (T,) or (B, T), in (0, {widest}], "
                f"got {value}"
            )
        if track.unique().numel() > MAX_WIDTHS:
            raise ValueError(
                f"external_utilization may have {MAX_WIDTHS} different values, "
                f"got {track.unique().numel()}; round them"
            )
        self._external = track

    def forward(
        self, input: Tensor, ilens: Tensor, additional: dict | None = None
    ) -> tuple[list[Tensor], Tensor, OrderedDict]:
        """Separate a batch of features.

        Args:
            input: (B, T, F), real; or complex, then masks are computed from magnitudes.
            ilens: valid frames (B,).
            additional: unused.

        Returns:
            J masked features (B, T, F); ``ilens``; others: ``mask_spk{n}`` (B, T, F), detached;
            ``dsn_utilization`` (B, T), in the graph; ``dsn_gate_utilization`` (B, T), the gate's
            own choice before dropout, detached; ``dsn_gated`` (B,) bool, false where dropout or
            external gating decided; ``dsn_lengths`` (B,); ``dsn_levels`` (K,), ascending;
            ``dsn_gate_logits`` (B, T, K), detached, if the gate ran.
        """
        input, x, padding = features(input, ilens)
        if self.level_norm:
            x = x / level_of(x, padding)
        decision = self._decide(x, padding)
        plan = self._plan(decision, ChunkMap.of(self.segmentation, x, padding))
        masks = self._masks(x, padding, plan)
        if self.record_cost:
            self.last_cost = self._cost_track(plan, ilens, x.shape[1])
        if self.record_utilization:
            self.last_utilization = _record(decision, ilens)
        outputs, others = apply_masks(input, masks, self.num_spk)
        others["dsn_utilization"] = decision.utilization
        others["dsn_gate_utilization"] = decision.gate_utilization
        others["dsn_gated"] = decision.gated
        others["dsn_lengths"] = ilens
        others["dsn_levels"] = decision.chosen.new_tensor(self.levels)
        if decision.logits is not None:
            others["dsn_gate_logits"] = decision.logits
        return outputs, ilens, others

    def _ladder(self, widths: Sequence[float]) -> Ladder:
        return Ladder.of_widths(widths, self.num_heads, self.ffn_dim)

    def _decide(self, x: Tensor, padding: Padding | None) -> Decision:
        batch, frames, _ = x.shape
        nobody = torch.zeros(batch, dtype=torch.bool, device=x.device)
        if self._external is not None or self.gate is None:
            external = self._external
            if external is None:
                external = torch.tensor(self.levels, dtype=torch.float64)
            widths, level = external.to(x.device).unique(return_inverse=True)
            try:
                level = level.expand(batch, frames)
            except RuntimeError as error:
                raise ValueError(
                    f"external_utilization {tuple(external.shape)} does not fit {batch} "
                    f"utterances of {frames} frames"
                ) from error
            chosen = nn.functional.one_hot(level, len(widths)).float()
            used = widths.float()[level]
            return Decision(tuple(widths.tolist()), chosen, nobody, used, None)
        logits = self.gate(x, padding)
        widths = logits.new_tensor(self.levels)
        if not self.training and self.compute_price:
            logits = logits - self.compute_price * widths
        chosen = choose(logits, self.temperature, sample=self.training)
        gate_utilization = (chosen.detach() * widths).sum(-1)
        dropped = nobody
        if self.training and self.gate_dropout:
            dropped = torch.rand(batch, device=x.device) < self.gate_dropout
            drawn = torch.randint(len(widths), (batch,), device=x.device)
            fixed = nn.functional.one_hot(drawn, len(widths)).to(chosen)[:, None]
            # Gradients stay defined (zero), as distributed training wants.
            chosen = torch.where(dropped[:, None, None], fixed + 0.0 * chosen, chosen)
        return Decision(self.levels, chosen, ~dropped, gate_utilization, logits.detach())

    def _plan(self, decision: Decision, chunk_map: ChunkMap) -> Plan:
        ladder = self._ladder(decision.widths)
        masked = self.execution == "masked"
        if self.execution == "auto":
            masked = self.training or torch.is_grad_enabled()
        if not masked:
            return SparsePlan(decision.chosen.argmax(-1), ladder, chunk_map)
        if len(decision.widths) == 1:
            return MaskedPlan(None, ladder, chunk_map)
        # c_k, k >= 2, is the sum of the levels from k on; the first is the constant 1.
        nested = decision.chosen.flip(-1).cumsum(-1).flip(-1)
        nested = torch.cat((torch.ones_like(nested[..., :1]), nested[..., 1:]), -1)
        return MaskedPlan(nested, ladder, chunk_map)

    def _masks(self, x: Tensor, padding: Padding | None, plan: Plan) -> list[Tensor]:
        """Masks (B, T, F) of the speakers."""
        frames = x.shape[1]
        lengths = None if padding is None else padding.lengths
        y = linear(self.input_norm(x, lengths), self.bottleneck.weight)
        if padding is not None:
            y = y * padding.like(y)
        y = self.segmentation.split(y).contiguous()
        for block in self.blocks:
            y = block(y, plan)
        y = self.prelu(y)
        masks = []
        for weight, bias in zip(
            self.expand.weight.chunk(self.num_spk),
            self.expand.bias.chunk(self.num_spk),
            strict=True,
        ):
            part = self.segmentation.merge(linear(y, weight, bias), frames)
            value = linear(part, self.output.weight, self.output.bias)
            gate = linear(part, self.output_gate.weight, self.output_gate.bias)
            masks.append(self.nonlinear(linear(gated_tanh(value, gate), self.mask.weight)))
        return masks

    def _cost_track(self, plan: Plan, ilens: Tensor, frames: int) -> CostTrack:
        """Of all Transformer layers; each chunk's share goes to the frames it holds."""
        chunk_map = plan.chunk_map
        dim = self.bottleneck.out_features
        head_dim = dim // self.num_heads
        block = self.blocks[0]
        assert isinstance(block, SlimmableDualPathBlock)
        layers = [len(self.blocks) * len(stack.layers) for stack in (block.intra, block.inter)]
        intra, inter = plan.macs(dim, head_dim)
        executed = layers[0] * intra + layers[1] * inter
        widest = self._ladder(self.levels)
        heads, neurons = widest.heads[-1], widest.neurons[-1]
        number, size = chunk_map.frame.shape[1:]
        full = torch.zeros_like(executed)
        for item, chunks in enumerate(chunk_map.chunks):
            keys = (size, chunks) if isinstance(plan, SparsePlan) else (size, number)
            full[item, : chunks if isinstance(plan, SparsePlan) else number] = sum(
                count * layer_macs(dim, head_dim, heads, neurons, n)
                for count, n in zip(layers, keys, strict=True)
            )
        return CostTrack(
            chunk_map.collect(executed, frames),
            chunk_map.collect(full, frames),
            torch.arange(frames) < ilens.cpu()[:, None],
        )


def _record(decision: Decision, ilens: Tensor) -> UtilizationRecord:
    utilization = decision.utilization.detach().cpu()
    logits = decision.logits
    return UtilizationRecord(
        utilization,
        None if logits is None else logits.cpu(),
        torch.arange(utilization.shape[1]) < ilens.cpu()[:, None],
    )
