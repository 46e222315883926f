"""DSN's complexity loss and the segments it looks at."""

import math

import pytest
import torch

from espnet2_sepx.losses.auxiliary import AuxSolver
from espnet2_sepx.losses.complexity import DSNComplexity
from espnet2_sepx.losses.segments import Segmenter, segment_class

SAMPLES, FRAMES = 8000, 999


def others_of(used, levels=(0.125, 1.0), lengths=None, gated=None, perm=None):
    batch, frames = used.shape
    others = {
        "dsn_utilization": used,
        "dsn_gate_utilization": used.detach(),
        "dsn_gated": torch.ones(batch, dtype=torch.bool) if gated is None else gated,
        "dsn_lengths": torch.full((batch,), frames) if lengths is None else lengths,
        "dsn_levels": torch.tensor(levels),
    }
    return others if perm is None else {**others, "perm": perm}


def references(batch=2):
    return [torch.randn(batch, SAMPLES) for _ in range(2)]


def value(mode, used, ref=None, est=None, **options):
    conf = {k: options.pop(k) for k in ("a", "b", "weight_form") if k in options}
    ref = references(len(used)) if ref is None else ref
    return DSNComplexity(mode=mode, **conf)(
        ref, ref if est is None else est, others_of(used, **options)
    )


@pytest.mark.parametrize("mode", ["si", "sd"])
def test_values_at_the_two_ends(mode):
    """Perfect estimates: the signal-dependent weight is 1, too."""
    least, most = torch.full((2, FRAMES), 0.125), torch.ones(2, FRAMES)
    assert value(mode, least).tolist() == [0.0, 0.0]
    assert value(mode, most).tolist() == [0.765625, 0.765625]


def test_without_separation_width_is_free():
    assert value("sd", torch.ones(2, FRAMES), est=references()).tolist() == [0.0, 0.0]


def test_silence_costs_fully_even_with_noise_in_the_estimates():
    silent = [torch.zeros(1, SAMPLES)] * 2
    cost = value("sd", torch.ones(1, FRAMES), ref=silent, est=references(1))
    assert cost.item() == 0.765625


def test_a_single_speaker_is_judged_by_their_estimate_alone():
    one, nobody = torch.randn(1, SAMPLES), torch.zeros(1, SAMPLES)
    used = torch.ones(1, FRAMES)
    assert value("sd", used, [one, nobody], [one, torch.randn(1, SAMPLES)]).item() == 0.765625
    assert value("sd", used, [one, nobody], [torch.randn(1, SAMPLES), nobody]).item() == 0.0


@pytest.mark.parametrize(
    ("form", "at_b", "one_after"),
    [("expm1", 0.0, math.log(2) / 0.05), ("shifted", math.exp(-1), 20)],
)
def test_weight_functions(form, at_b, one_after):
    loss = DSNComplexity(a=0.05, b=10.0, weight_form=form)
    points = torch.tensor([-30.0, 9.999, 10.0, 10.0 + one_after, 10.0 + one_after - 1.0, 60.0])
    weight = loss.weight(points.double())
    assert weight[:2].tolist() == [0.0, 0.0]
    assert weight[2].item() == pytest.approx(at_b)
    assert weight[3].item() == pytest.approx(1.0)
    assert weight[4] < 0.999
    curve = loss.weight(torch.linspace(-30, 60, 500))
    assert (curve.diff() >= 0).all()
    assert curve.min() >= 0
    assert curve.max() == 1.0


def test_no_gradient_through_the_weight():
    ref = references()
    est = [r.clone().add_(0.05 * torch.randn_like(r)).requires_grad_() for r in ref]
    used = torch.rand(2, FRAMES, requires_grad=True)
    cost = value("sd", used, ref, est, b=10.0).sum()
    cost.backward()
    assert used.grad.abs().max() > 0
    assert all(signal.grad is None for signal in est)


def test_padding_and_other_items_do_not_matter():
    ref, used = references(), torch.rand(2, FRAMES)
    est = [r + 0.02 * torch.randn_like(r) for r in ref]
    lengths = torch.tensor([FRAMES, 500])
    both = value("sd", used, ref, est, lengths=lengths)
    changed = used.clone()
    changed[1, 500:] = 1.0
    assert torch.equal(value("sd", changed, ref, est, lengths=lengths), both)
    alone = value("sd", used[:1], [r[:1] for r in ref], [e[:1] for e in est])
    assert alone.item() == pytest.approx(both[0].item())


def test_dropped_out_utterances_count_zero():
    gated = torch.tensor([True, False])
    assert value("si", torch.ones(2, FRAMES), gated=gated).tolist() == [0.765625, 0.0]


def test_through_the_wrapper_the_order_of_the_estimates_does_not_matter():
    ref = references()
    est = [r + 0.05 * torch.randn_like(r) for r in ref]
    solver = AuxSolver(DSNComplexity(b=10.0), weight=1.0)
    used = torch.rand(2, FRAMES)
    straight = torch.tensor([[0, 1], [0, 1]])
    loss, stats, _ = solver(ref, est, others_of(used, perm=straight))
    swapped, swapped_stats, _ = solver(ref, est[::-1], others_of(used, perm=straight.flip(1)))
    wrong, _, _ = solver(ref, est[::-1], others_of(used, perm=straight))
    assert loss == swapped > 0
    assert {k: v.item() for k, v in stats.items()} == pytest.approx(
        {k: v.item() for k, v in swapped_stats.items()}, nan_ok=True
    )
    assert wrong == 0


def test_the_log_tells_the_classes_apart():
    ref = references(1)
    ref[0][:, :4000] = 0.0  # silence, then speaker 2 alone, then both
    ref[1][:, :2000] = 0.0
    time = (torch.arange(FRAMES) * 8 + 8) / 8000
    used = torch.full((1, FRAMES), 0.125)
    used[0, time > 0.5] = 1.0
    loss = DSNComplexity(mode="si")
    loss(ref, ref, others_of(used))
    stats = {key: figure.item() for key, figure in loss.stats.items()}
    prefix = "dsn_complexity"
    assert stats[f"{prefix}_utilization_silence"] == 0.125
    assert 0.125 <= stats[f"{prefix}_utilization_single"] < 0.3
    assert 0.9 < stats[f"{prefix}_utilization_overlap"] <= 1.0  # a segment reaches over the border
    share = (time > 0.5).float().mean().item()
    assert stats[f"{prefix}_level_1"] == pytest.approx(share)
    assert stats[f"{prefix}_level_0.125"] == pytest.approx(1 - share)
    assert stats[f"{prefix}_weight"] == 1.0


@pytest.mark.parametrize("samples", [16, 767, 768, 769, 1152, 1153])
def test_segments_cover_the_signal(samples):
    segments = Segmenter(768, 384)
    count = segments.count(samples)
    assert count == max(1, math.ceil((samples - 768) / 384) + 1)
    x = torch.rand(samples)
    cut = segments.cut(x)
    assert cut.shape == (count, 768)
    assert cut.flatten().max() == x.max()
    assert cut[0, : min(samples, 768)].equal(x[:768])


def test_frames_belong_to_the_nearest_segment():
    segments = Segmenter(768, 384)
    nearest = segments.of_frames(FRAMES, segments.count(SAMPLES), 16, 8, torch.zeros(()))
    centres = torch.arange(segments.count(SAMPLES)) * 384 + 384
    for t in (0, 20, 71, 72, 500, 998):
        distance = (centres - (8 * t + 8)).abs()
        assert distance[nearest[t]] == distance.min()


def test_activity_is_relative_to_the_speaker_and_silence_is_nobody():
    segments = Segmenter(100, 100)
    loud, quiet = torch.zeros(1, 300), torch.zeros(1, 300)
    loud[0, :100], loud[0, 100:200] = 1.0, 0.009  # 41 dB below
    quiet[0, 100:200] = 0.001
    activity = segments.activity([loud, quiet])
    assert activity.tolist() == [[[True, False, False], [False, True, False]]]
    assert segment_class(activity).tolist() == [[1, 1, 0]]
    assert not segments.activity([torch.full((1, 300), 1e-9)]).any()


def test_segmental_si_sdr_ignores_scale_and_is_bounded():
    segments = Segmenter(100, 50)
    ref = torch.randn(1, 400)
    noisy = ref + 0.1 * torch.randn_like(ref)
    scores = segments.si_sdr([ref], [noisy])
    assert torch.allclose(scores, segments.si_sdr([ref], [3.0 * noisy]), atol=1e-3)
    assert segments.si_sdr([ref], [ref]).unique().tolist() == [60.0]
    assert segments.si_sdr([ref], [torch.zeros_like(ref)]).isfinite().all()
    part, reference = noisy[0, :100].double(), ref[0, :100].double()
    target = (part @ reference) / (reference @ reference) * reference
    expected = 10 * torch.log10(target.square().sum() / (part - target).square().sum())
    assert scores[0, 0, 0].item() == pytest.approx(expected.item(), abs=1e-3)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"mode": "both"}, "mode"),
        ({"weight_form": "exp"}, "weight_form"),
        ({"a": 0.0}, "a must"),
        ({"activity_db": 3.0}, "activity_db"),
        ({"hop_ms": 0.0}, "hop"),
    ],
)
def test_options_out_of_range(options, match):
    with pytest.raises(ValueError, match=match):
        DSNComplexity(**options)


def test_another_separator_is_told_what_is_missing():
    with pytest.raises(KeyError, match=r"dsn_utilization.*separator 'dsn'"):
        DSNComplexity(mode="si")(references(), references(), {"mask_spk1": None})
