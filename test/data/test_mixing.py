import dataclasses

import numpy as np
import pytest

from espnet2_sepx.data.loudness import active_level_db, power_db
from espnet2_sepx.data.metadata import RecordedSource
from espnet2_sepx.data.mixing import MixJob, MixOptions, Readers, plan, render
from espnet2_sepx.data.overlap import overlap_ratio

FS = 8000


def speech_like(seconds: float, seed: int) -> np.ndarray:
    """Noise in syllables of 0.2 s with dips and a pause, peak 0.5."""
    rng = np.random.default_rng(seed)
    envelope = np.repeat(rng.uniform(0.3, 1.0, 200), FS // 5)[: round(seconds * FS)]
    envelope[round(0.4 * len(envelope)) : round(0.5 * len(envelope))] = 0
    signal = envelope * rng.standard_normal(len(envelope))
    return signal / np.abs(signal).max() / 2


AUDIO = {
    "a_0": speech_like(4.0, 0),
    "b_0": speech_like(2.5, 1),
    "rain": np.random.default_rng(2).standard_normal(3 * FS) * 0.02,
    "short": np.random.default_rng(3).standard_normal(FS // 2) * 0.3,
    "hall_1": np.r_[np.zeros(40), 1.0, np.random.default_rng(4).standard_normal(FS // 2) * 0.02],
    "hall_2": np.r_[np.zeros(10), 0.7, np.random.default_rng(5).standard_normal(FS // 2) * 0.02],
    "impulse": np.r_[np.zeros(25), 0.8, np.zeros(50)],
}
READ = Readers(AUDIO.__getitem__, AUDIO.__getitem__, AUDIO.__getitem__)
PAIR = tuple(RecordedSource(name, name[0], 0, len(AUDIO[name]), 1.0, "") for name in ("a_0", "b_0"))


def draw(number: int = 0, noises=(), rirs=(), **options):
    job = MixJob("a_b_0", PAIR, MixOptions(FS, **options), (0, number), noises, rirs)
    row = plan(job, READ)
    return row, render(row, READ)


VARIANTS = {
    "min": {},
    "max": {"mode": "max"},
    "overlap": {"overlap_ratio": (0.1, 0.5)},
    "noise": {"noises": ("rain", "short")},
    "room": {"rirs": ("hall_1", "hall_2"), "noises": ("rain",)},
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_laws_of_every_mixture(options):
    for number in range(10):
        row, signals = draw(number, **options)
        parts = [s.astype(int) for s in (signals.s1, signals.s2, signals.noise) if s is not None]
        assert np.array_equal(signals.mix, sum(parts))  # exactly, in integers
        assert len(signals.mix) == row.samples
        assert max(np.abs(s).max() for s in (signals.mix, *parts)) <= 0.9 * 32768 + 2
        levels = [active_level_db(part / 32768, FS) for part in parts[:2]]
        assert levels == pytest.approx([row.s1.level_db, row.s2.level_db], abs=0.05)
        assert abs(levels[0] - levels[1]) <= 5.1
        assert row.overlap == pytest.approx(overlap_ratio(*parts[:2], FS), abs=1e-4)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_a_mixture_depends_on_its_seed_alone(options):
    assert draw(1, **options)[0] == draw(1, **options)[0]
    assert draw(1, **options)[0] != draw(2, **options)[0]


def test_min_cuts_the_longer_and_max_pads_the_shorter():
    assert draw()[0].samples == len(AUDIO["b_0"])
    row, signals = draw(mode="max")
    assert row.samples == len(AUDIO["a_0"])
    assert not signals.s2[len(AUDIO["b_0"]) :].any()


def test_cuts_are_taken_in_different_places():
    starts = {draw(number)[0].s1.start for number in range(8)}
    assert len(starts) > 4


def test_levels_use_their_range():
    differences = []
    for number in range(60):
        row, _ = draw(number, level_range_db=2.5)
        differences.append(row.s1.level_db - row.s2.level_db)
    assert -5 <= min(differences) < -3
    assert 3 < max(differences) <= 5
    row, _ = draw(level_range_db=0.0)
    assert row.s1.level_db == row.s2.level_db


def test_the_overlap_asked_for_is_reached_and_nothing_is_cut():
    for number in range(10):
        row, _ = draw(number, overlap_ratio=(0.2, 0.4))
        assert 0.18 <= row.overlap <= 0.42
        assert row.s1.offset == 0 < row.s2.offset
        assert row.samples == max(len(AUDIO["a_0"]), row.s2.offset + len(AUDIO["b_0"]))


@pytest.mark.parametrize("noise", ["rain", "short"])  # the short one is repeated
def test_the_snr_asked_for_is_reached(noise):
    for number in range(5):
        row, signals = draw(number, noises=(noise,), noise_snr_db=(-3.0, 12.0))
        assert -3 <= row.noise.snr_db <= 12
        louder = max(active_level_db(s / 32768, FS) for s in (signals.s1, signals.s2))
        snr_db = louder - power_db(signals.noise / 32768)
        assert snr_db == pytest.approx(row.noise.snr_db, abs=0.05)


def test_a_response_that_is_one_impulse_changes_nothing():
    """Neither its delay nor its height: the direct sound is aligned, the level is set after."""
    dry, echoed = draw()[1], draw(rirs=("impulse",))[1]
    for name in ("s1", "s2"):
        assert np.abs(getattr(dry, name).astype(int) - getattr(echoed, name)).max() <= 1


def test_speakers_stand_at_two_positions_of_one_room():
    rirs = ("hall_1", "hall_2", "cave_1", "cave_2")
    read = READ._replace(rir=lambda name: AUDIO["hall" + name[4:]])
    for number in range(10):
        job = MixJob("u", PAIR, MixOptions(FS), (number,), rirs=rirs)
        row = plan(job, read)
        assert row.s1.rir != row.s2.rir
        assert row.s1.rir[:4] == row.s2.rir[:4]


def test_a_loud_mixture_is_lowered_as_a_whole():
    """Clicks far above the level of the rest would exceed full scale."""
    spiky = AUDIO["a_0"] * 0.02
    spiky[[1000, 9000, 15000]] = 1.0
    read = READ._replace(source=lambda name: spiky[: len(AUDIO[name])])
    lowered = 0
    for number in range(10):
        row = plan(MixJob("u", PAIR, MixOptions(FS), (number,)), read)
        peak = max(np.abs(s).max() for s in render(row, read)[:3])
        assert peak <= 0.9 * 32768 + 2
        lowered += peak > 0.9 * 32768 - 2
    assert lowered


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "mean"}, "mode"),
        ({"level_range_db": -1}, "level_range_db"),
        ({"overlap_ratio": (0.5, 0.2)}, "overlap_ratio"),
        ({"overlap_ratio": (0.5, 1.2)}, "overlap_ratio"),
        ({"noise_snr_db": (5, 2)}, "noise_snr_db"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        MixOptions(FS, **options)


def test_a_table_line_that_does_not_fit_its_source_is_refused():
    from espnet2_sepx.errors import UserError

    row, _ = draw()
    broken = dataclasses.replace(row, s1=dataclasses.replace(row.s1, start=10**6))
    with pytest.raises(UserError, match="a_0"):
        render(broken, READ)
