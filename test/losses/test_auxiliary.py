"""Auxiliary losses inside ESPnet's own model: weighting, order, permutation, logging."""

from __future__ import annotations

import pytest
import torch
from espnet2.enh.decoder.stft_decoder import STFTDecoder
from espnet2.enh.encoder.stft_encoder import STFTEncoder
from espnet2.enh.loss.criterions.time_domain import SISNRLoss, SNRLoss
from espnet2.enh.loss.wrappers.fixed_order import FixedOrderSolver
from espnet2.enh.loss.wrappers.pit_solver import PITSolver

from espnet2_sepx.losses.auxiliary import AuxCriterion, AuxScalar, AuxSolver
from espnet2_sepx.separators.tf_moe import TFMoESeparator

SAMPLES = 640


class Distance(AuxCriterion):
    """A criterion on signals: mean square of estimate minus reference, per utterance."""

    needs_signals = True

    def forward(self, ref, est, others):
        value = sum((e - r).square().mean(1) for r, e in zip(ref, est, strict=True))
        self.stats = {f"{self.name}_first": (est[0] - ref[0]).square().mean(1).detach()}
        return value


def signals(batch: int = 3) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    return [list(torch.randn(2, batch, SAMPLES).unbind(0)) for _ in range(2)]


@pytest.fixture(scope="module")
def build_model():
    """ESPnet's enhancement model around a tiny TF-MoE, given its loss wrappers."""
    from espnet2.enh.espnet_model import ESPnetEnhancementModel

    def build(wrappers, **separator):
        torch.manual_seed(0)
        options = {
            "num_channels": 8, "num_blocks": 1, "num_bands": 6, "sample_rate": 8000,
            "num_experts": 3, "num_heads": 2, "head_dim": 4, "conv_kernel": 3,
        }  # fmt: skip
        return ESPnetEnhancementModel(
            encoder=STFTEncoder(n_fft=64, hop_length=32),
            separator=TFMoESeparator(33, **{**options, **separator}),
            decoder=STFTDecoder(n_fft=64, hop_length=32),
            mask_module=None,
            loss_wrappers=wrappers,
        )

    return build


def batch(lengths=(SAMPLES, 500)) -> dict[str, torch.Tensor]:
    data = {name: torch.randn(len(lengths), SAMPLES) for name in ("speech_ref1", "speech_ref2")}
    for item, length in enumerate(lengths):
        for signal in data.values():
            signal[item, length:] = 0
    return {
        "speech_mix": sum(data.values()),
        "speech_mix_lengths": torch.tensor(lengths),
        **data,
    }


def pit(**options) -> PITSolver:
    return PITSolver(SISNRLoss(), **options)


def balance(weight: float = 0.5, **options) -> AuxSolver:
    return AuxSolver(AuxScalar("moe_balance", **options), weight)


def test_loss_and_gradients_are_the_weighted_sum(build_model) -> None:
    model, data = build_model([pit(), balance(0.5)]), batch()
    loss, stats, _ = model(**data)
    total = stats["si_snr_loss"] + 0.5 * stats["moe_balance"]
    torch.testing.assert_close(loss.detach().squeeze(), total.squeeze())
    loss.sum().backward()
    ours = [p.grad.clone() for p in model.parameters()]

    model.zero_grad()
    estimates, _, _, others = model.forward_enhance(data["speech_mix"], data["speech_mix_lengths"])
    refs = [data["speech_ref1"], data["speech_ref2"]]
    by_hand = pit()(refs, estimates, {})[0] + 0.5 * others["moe_balance"]
    by_hand.backward()
    for a, p in zip(ours, model.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad, rtol=1e-4, atol=1e-5)


def test_the_router_hears_the_balance_loss(build_model) -> None:
    gradients = []
    for weight in (0.0, 1.0):
        model = build_model([pit(), balance(weight)], gate="normalised")
        model(**batch())[0].sum().backward()
        gradients.append(model.separator.blocks[0]["time"].ffn1.router.grad)
    assert gradients[0] is None or gradients[0].abs().max() < 1e-6
    assert gradients[1].abs().max() > 1e-6


def test_expert_loads_are_logged_with_the_same_keys_always(build_model) -> None:
    model = build_model([pit(), balance()])
    keys = []
    for training, lengths in ((True, (SAMPLES, 500)), (False, (SAMPLES, 500)), (True, (500, 500))):
        stats = model.train(training)(**batch(lengths))[1]
        keys.append(list(stats))
        assert all(value.isfinite().all() for value in stats.values())
    assert keys[0] == keys[1] == keys[2]
    assert {"moe_balance", "moe_t1_ffn1_max_share", "moe_f1_ffn2_alive"} <= set(keys[0])
    assert not any(key.startswith("mask") for key in keys[0])
    model = build_model([pit(), balance(log_prefix="")])
    assert set(model(**batch())[1]) == {"si_snr_loss", "moe_balance", "loss"}


def test_before_pit_a_criterion_on_signals_says_where_it_belongs() -> None:
    ref, est = signals()
    solver = AuxSolver(Distance("distance"))
    for others in ({}, {"perm": torch.rand(3, 2)}, {"perm": torch.zeros(3, 2, 2, dtype=int)}):
        with pytest.raises(ValueError, match=r"distance needs the permutation.*'pit'"):
            solver(ref, est, others)


def test_permutation_reaches_a_second_pit_wrapper(build_model) -> None:
    second = PITSolver(SNRLoss(), independent_perm=False)
    model = build_model([pit(), balance(), second])
    stats = model(**batch())[1]
    assert stats["snr_loss"].isfinite().all()
    perm = torch.tensor([[1, 0]])
    assert AuxSolver(AuxScalar("k"))(*signals(1), {"k": torch.ones(()), "perm": perm})[2] == {
        "perm": perm
    }
    assert AuxSolver(AuxScalar("k"))(*signals(1), {"k": torch.ones(())})[2] == {}


def test_shuffled_estimates_change_nothing() -> None:
    ref, est = signals()
    est = [r + 0.1 * e for r, e in zip(ref, est, strict=True)]
    swap = torch.tensor([True, False, True])[:, None]
    shuffled = [torch.where(swap, est[1], est[0]), torch.where(swap, est[0], est[1])]
    results = []
    for estimates in (est, shuffled):
        others = pit()(ref, estimates, {})[2]
        value, stats, _ = AuxSolver(Distance("distance"))(ref, estimates, others)
        results.append((value, stats["distance_first"]))
    torch.testing.assert_close(results[0], results[1])
    assert results[0][0] < 0.1
    fixed = FixedOrderSolver(SNRLoss())(ref, est, {})[2]
    torch.testing.assert_close(AuxSolver(Distance("distance"))(ref, est, fixed)[0], results[0][0])


def test_zero_weight_is_logged_without_a_gradient(build_model) -> None:
    model = build_model([pit(), balance(0.0)])
    loss, stats, _ = model(**batch())
    assert stats["moe_balance"] > 0
    torch.testing.assert_close(loss.detach().squeeze(), stats["si_snr_loss"].squeeze())


def test_only_for_test_is_absent_in_training(build_model) -> None:
    model = build_model([pit(), balance(only_for_test=True)])
    assert "moe_balance" not in model.train()(**batch())[1]
    assert "moe_balance" in model.eval()(**batch())[1]


def test_scalar_or_per_utterance_values() -> None:
    ref, est = signals()
    value, stats, _ = AuxSolver(AuxScalar("k", name="shown"))(
        ref, est, {"k": torch.tensor([1.0, 2.0, 6.0], requires_grad=True)}
    )
    assert value.item() == stats["shown"].item() == 3.0
    assert value.requires_grad
    assert not stats["shown"].requires_grad


def test_missing_key() -> None:
    ref, est = signals()
    with pytest.raises(KeyError, match=r"lack 'moe_balance'.*mask_spk1.*allow_missing"):
        AuxSolver(AuxScalar("moe_balance"))(ref, est, {"mask_spk1": 0})
    value, stats, _ = AuxSolver(AuxScalar("moe_balance", allow_missing=True))(ref, est, {})
    assert value.item() == 0.0
    assert list(stats) == ["moe_balance"]


def test_logged_figures_are_detached_scalars_with_the_prefix() -> None:
    others = {
        "moe_balance": torch.ones(()),
        "moe_a": torch.tensor(2.0),
        "moe_graph": torch.ones((), requires_grad=True),
        "moe_vector": torch.ones(3),
        "dsn_a": torch.ones(()),
    }
    stats = AuxSolver(AuxScalar("moe_balance"))(*signals(), others)[1]
    assert set(stats) == {"moe_balance", "moe_a"}
    stats = AuxSolver(AuxScalar("moe_balance", log_prefix="dsn"))(*signals(), others)[1]
    assert set(stats) == {"moe_balance", "dsn_a"}


def test_wrong_pairs_fail_at_once() -> None:
    with pytest.raises(TypeError, match="'aux' takes an AuxCriterion, got SISNRLoss"):
        AuxSolver(SISNRLoss())
    with pytest.raises(TypeError):
        PITSolver(AuxScalar("moe_balance"))(*signals(), {})


def test_float32_under_autocast() -> None:
    ref, est = signals()
    others = {"k": torch.tensor(1.0, dtype=torch.bfloat16)}
    with torch.autocast("cpu", torch.bfloat16):
        value, stats, _ = AuxSolver(AuxScalar("k"))(ref, est, others)
    assert value.dtype == stats["k"].dtype == torch.float32
