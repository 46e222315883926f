"""Auxiliary losses (expert balance, complexity) inside ESPnet's stock training loop.

ESPnet walks through ``criterions`` and calls each wrapper with the references, the estimates and
``others`` of the separator (plus what the wrapper before returned). ``AuxCriterion`` is a criterion
that may read ``others``; ``AuxSolver`` (name ``aux``) is the wrapper that feeds it:

    criterions:
      - {name: si_snr, conf: {}, wrapper: pit, wrapper_conf: {weight: 1.0}}
      - {name: aux_scalar, conf: {key: moe_balance}, wrapper: aux, wrapper_conf: {weight: 0.001}}

Criteria and wrappers are not submodules of ESPnet's model: they hold no parameters or buffers and
never ask whether they train.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from espnet2.enh.loss.criterions.time_domain import TimeDomainLoss
from espnet2.enh.loss.wrappers.abs_wrapper import AbsLossWrapper
from torch import Tensor


class AuxCriterion(TimeDomainLoss):
    """A loss on what the separator reports in ``others``.

    ``forward(ref, est, others)`` returns one differentiable value per utterance ``(B,)`` or a
    scalar, and leaves ``stats``: name -> detached tensor, always with the same keys.
    ``TimeDomainLoss`` is the base only because ESPnet dispatches on it.
    """

    needs_signals = False
    """Whether ``est`` must come in the order of ``ref``; the wrapper then needs a permutation."""

    def __init__(self, name: str, only_for_test: bool = False) -> None:
        super().__init__(name, only_for_test=only_for_test)
        self.stats: dict[str, Tensor] = {}

    @abstractmethod
    def forward(  # type: ignore[override]
        self, ref: list[Tensor], est: list[Tensor], others: dict
    ) -> Tensor:
        raise NotImplementedError


class AuxScalar(AuxCriterion):
    """A loss the separator has computed itself, e.g. the expert balance of TF-MoE.

    Args:
        key: entry of ``others``, scalar or (B,); the value is its mean.
        name: under which it is logged; default ``key``.
        only_for_test: leave it out of training.
        allow_missing: count a missing key as 0 (for separators that emit it in training only).
        log_prefix: entries of ``others`` starting so, if detached scalars, are logged as well;
            default: the part of ``key`` up to its first underscore ("moe_" of "moe_balance"); ""
            logs none.
    """

    def __init__(
        self,
        key: str,
        name: str | None = None,
        only_for_test: bool = False,
        allow_missing: bool = False,
        log_prefix: str | None = None,
    ) -> None:
        super().__init__(key if name is None else name, only_for_test=only_for_test)
        self.key = key
        self.allow_missing = allow_missing
        if log_prefix is None:
            log_prefix = key[: key.find("_") + 1]
        self.log_prefix = log_prefix

    def forward(  # type: ignore[override]
        self, ref: list[Tensor], est: list[Tensor], others: dict
    ) -> Tensor:
        self.stats = {}
        if self.log_prefix:
            self.stats = {
                key: value
                for key, value in others.items()
                if key.startswith(self.log_prefix) and key != self.key and _is_figure(value)
            }
        if self.key in others:
            return others[self.key].float().mean()
        if self.allow_missing:
            return ref[0].new_zeros(())
        raise KeyError(
            f"{self.name}: the separator's others lack '{self.key}' (they have {sorted(others)}); "
            "it must come from a separator that emits it, or set allow_missing: true"
        )


def _is_figure(value: object) -> bool:
    return isinstance(value, Tensor) and value.dim() == 0 and not value.requires_grad


class AuxSolver(AbsLossWrapper):
    """Feeds an ``AuxCriterion``; place it after the PIT wrapper in ``criterions``.

    Args:
        criterion: the auxiliary criterion.
        weight: its factor in the loss, a paper's alpha; 0 logs it without a gradient.
    """

    def __init__(self, criterion: AuxCriterion, weight: float = 1.0) -> None:
        super().__init__()
        if not isinstance(criterion, AuxCriterion):
            raise TypeError(
                f"wrapper 'aux' takes an AuxCriterion, got {type(criterion).__name__}; "
                "use wrapper 'pit' or 'fixed_order' for it"
            )
        self.criterion = criterion
        self.weight = weight

    def forward(  # type: ignore[override]
        self, ref: list[Tensor], inf: list[Tensor], others: dict
    ) -> tuple[Tensor, dict, dict]:
        """Value, figures to log, and the permutation for wrappers that follow."""
        perm = others.get("perm")
        with torch.autocast(ref[0].device.type, enabled=False):
            if self.criterion.needs_signals:
                inf = _in_order_of_references(inf, perm, self.criterion.name)
            value = self.criterion(ref, inf, others).mean()
        stats = {key: figure.float().mean() for key, figure in self.criterion.stats.items()}
        stats[self.criterion.name] = value.detach()
        return value, stats, ({} if perm is None else {"perm": perm})


def _in_order_of_references(estimates: list[Tensor], perm: object, name: str) -> list[Tensor]:
    """est[s] belonging to ref[s], by ``perm (B, S)``: ref[s] <-> est[perm[b, s]]."""
    if not (
        isinstance(perm, Tensor)
        and perm.dim() == 2
        and not torch.is_floating_point(perm)
        and not torch.is_complex(perm)
    ):
        raise ValueError(
            f"{name} needs the permutation of a preceding wrapper: place it after one with wrapper "
            "'pit' or 'fixed_order' in criterions"
        )
    stacked = torch.stack(estimates, 1)  # (B, S, samples)
    index = perm.to(stacked.device)[:, :, None].expand(-1, -1, stacked.shape[-1])
    return list(stacked.gather(1, index).unbind(1))
