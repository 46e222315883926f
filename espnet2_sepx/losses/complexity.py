"""Complexity loss of dynamic slimmable networks (DSN, eqs. 18 and 20).

    loss = mean over frames of w_t (U_t - min U)^2

punishes width, in mode "sd" the more, the better the frame is separated already: then w_t comes
from the segmental SI-SDR, with 1 in silence. In mode "si" w_t is 1. It goes after the PIT wrapper:

    criterions:
      - {name: si_snr, conf: {clamp_db: 30}, wrapper: pit, wrapper_conf: {weight: 1.0}}
      - {name: dsn_complexity, conf: {mode: sd, b: 30.0}, wrapper: aux, wrapper_conf: {weight: 1.0}}

Legend: B batch, N samples, J speakers, T frames, K levels, Q segments.
"""

from __future__ import annotations

import torch
from torch import Tensor

from espnet2_sepx.losses.auxiliary import AuxCriterion
from espnet2_sepx.losses.segments import CLASSES, Segmenter, mean_over_active, segment_class

MODES = ("si", "sd")
WEIGHT_FORMS = ("expm1", "shifted")


class DSNComplexity(AuxCriterion):
    """What a DSN's widths cost, one value per utterance; wrapper ``aux``.

    Reads ``dsn_*`` of the separator's ``others``. Utterances whose width the gate did not choose
    count 0. Logged with it: the gate's mean utilisation, over all frames and over those of each
    class of segment (NaN, which ESPnet's averages skip, where a batch has none), the mean weight,
    and the share of each level.

    Args:
        mode: "si" (signal-independent) or "sd" (signal-dependent).
        a: steepness of the weight, per dB.
        b: SI-SDR in dB from which on width is punished.
        weight_form: "expm1", exp(a (s - b)) - 1, is 0 at b; "shifted", exp(a (s - b) - 1), is as
            eq. 20 is printed and jumps to 0.37 there. Both end at 1.
        segment_ms, hop_ms: of the segments.
        activity_db: see ``Segmenter``.
        sample_rate: in Hz.
        kernel_size, stride: of the encoder, in samples.
        name: under which it is logged.
        only_for_test: leave it out of training.
    """

    def __init__(
        self,
        mode: str = "sd",
        a: float = 0.05,
        b: float = 30.0,
        weight_form: str = "expm1",
        segment_ms: float = 96.0,
        hop_ms: float = 48.0,
        activity_db: float = -40.0,
        sample_rate: int = 8000,
        kernel_size: int = 16,
        stride: int = 8,
        name: str = "dsn_complexity",
        only_for_test: bool = False,
    ) -> None:
        super().__init__(name, only_for_test=only_for_test)
        if mode not in MODES:
            raise ValueError(f"mode must be one of {MODES}, got {mode!r}")
        if weight_form not in WEIGHT_FORMS:
            raise ValueError(f"weight_form must be one of {WEIGHT_FORMS}, got {weight_form!r}")
        if a <= 0:
            raise ValueError(f"a must be positive, got {a}")
        self.mode = mode
        self.a, self.b = a, b
        self.weight_form = weight_form
        self.segmenter = Segmenter.of_ms(segment_ms, hop_ms, sample_rate, activity_db)
        self.kernel_size, self.stride = kernel_size, stride
        self.needs_signals = mode == "sd"

    def forward(  # type: ignore[override]
        self, ref: list[Tensor], est: list[Tensor], others: dict
    ) -> Tensor:
        used, gate, gated, lengths, levels = (
            self._entry(others, key)
            for key in ("utilization", "gate_utilization", "gated", "lengths", "levels")
        )
        frames = used.shape[1]
        valid = torch.arange(frames, device=used.device) < lengths.to(used.device)[:, None]
        with torch.no_grad():
            activity = self.segmenter.activity(ref)
            nearest = self.segmenter.of_frames(
                frames, activity.shape[-1], self.kernel_size, self.stride, used
            )
            kind = segment_class(activity)[:, nearest]
            weight = torch.ones_like(used)
            if self.mode == "sd":
                weight = self._segment_weight(ref, est, activity)[:, nearest].to(used.dtype)
            self._log(gate, levels, valid, kind, weight)
        cost = weight * (used - levels.min()).square() * valid
        return cost.sum(1) / valid.sum(1) * gated

    def weight(self, si_sdr: Tensor) -> Tensor:
        """Factor of a segment of this SI-SDR in dB, 0 .. 1."""
        exponent = self.a * (si_sdr - self.b)
        value = exponent.expm1() if self.weight_form == "expm1" else (exponent - 1).exp()
        return torch.where(si_sdr < self.b, 0.0, value.clamp_max(1.0))

    def _segment_weight(self, ref: list[Tensor], est: list[Tensor], activity: Tensor) -> Tensor:
        """(B, Q); 1 where nobody is active."""
        score = mean_over_active(self.segmenter.si_sdr(ref, est), activity)
        return torch.where(activity.any(1), self.weight(score), 1.0)

    def _entry(self, others: dict, key: str) -> Tensor:
        try:
            return others[f"dsn_{key}"]
        except KeyError:
            raise KeyError(
                f"{self.name}: the separator's others lack 'dsn_{key}' (they have "
                f"{sorted(others)}); it comes from the separator 'dsn'"
            ) from None

    def _log(
        self, gate: Tensor, levels: Tensor, valid: Tensor, kind: Tensor, weight: Tensor
    ) -> None:
        self.stats = {
            f"{self.name}_utilization": gate[valid].mean(),
            f"{self.name}_weight": weight[valid].mean(),
        }
        for index, name in enumerate(CLASSES):
            self.stats[f"{self.name}_utilization_{name}"] = gate[valid & (kind == index)].mean()
        nearest = (gate[valid][:, None] - levels).abs().argmin(1)
        for index, level in enumerate(levels.tolist()):
            share = (nearest == index).to(gate.dtype).mean()
            self.stats[f"{self.name}_level_{level:g}"] = share
