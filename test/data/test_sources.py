import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from espnet2_sepx.data.loudness import active_level_db
from espnet2_sepx.data.metadata import RecordedSource
from espnet2_sepx.data.sources import (
    cut,
    draw_pairs,
    recorded_origins,
    render_source,
    spoken_origins,
)
from espnet2_sepx.errors import UserError

FS = 8000
ORIGIN = RecordedSource("a_x", "a", 0, 0, 1.0, "a/x.wav")


def noise(seconds: float, level: float = 0.05) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(round(seconds * FS)) * level


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * FS))


def test_silence_at_the_ends_is_trimmed_and_the_level_set():
    signal = np.concatenate([silence(3), noise(2), silence(4)])
    (source,) = cut(ORIGIN, signal, FS, max_seconds=10)
    assert source.start / FS == pytest.approx(2.9, abs=0.03)
    assert source.samples / FS == pytest.approx(2.2, abs=0.05)
    dry = render_source(source, signal)
    assert dry.dtype == np.int16
    assert active_level_db(dry / 32768, FS) == pytest.approx(-26, abs=0.05)


def test_long_recordings_become_equal_pieces_that_join():
    signal = noise(25)
    sources = cut(ORIGIN, signal, FS, max_seconds=10)
    assert [source.source for source in sources] == ["a_x.000", "a_x.001", "a_x.002"]
    assert max(s.samples for s in sources) - min(s.samples for s in sources) <= 1
    for left, right in itertools.pairwise(sources):
        assert left.start + left.samples == right.start


def test_pieces_without_speech_are_left_out():
    signal = np.concatenate([noise(5), silence(20), noise(5)])
    sources = cut(ORIGIN, signal, FS, max_seconds=5)
    assert len(sources) == 2
    assert cut(ORIGIN, noise(0.3), FS, max_seconds=5) == []


def test_a_peak_is_never_above_nine_tenths():
    signal = noise(2, 0.01)
    signal[[3000, 9000]] = 1.0
    (source,) = cut(ORIGIN, signal, FS, max_seconds=10)
    assert np.abs(render_source(source, signal)).max() <= 0.9 * 32768 + 1


def test_another_recording_than_the_tables_is_noticed():
    (source,) = cut(ORIGIN, noise(3), FS, max_seconds=10)
    with pytest.raises(UserError, match="a_x"):
        render_source(source, noise(2))


def test_names_of_recordings_are_unique_and_without_blanks():
    folder = Path("/speech")
    files = {
        "Ann Lee": [folder / "Ann Lee" / name for name in ("a b.wav", "a b.flac", "deep/a b.wav")]
    }
    origins = recorded_origins(files, folder)
    assert [o.source for o in origins] == ["Ann-Lee_a-b", "Ann-Lee_a-b-2", "Ann-Lee_a-b-3"]
    assert origins[2].file == "Ann Lee/deep/a b.wav"
    with pytest.raises(UserError, match="would both be called 'Ann-Lee'"):
        recorded_origins({**files, "Ann-Lee": [folder / "Ann-Lee" / "c.wav"]}, folder)


def sources_of(counts: dict[str, int]) -> list[RecordedSource]:
    return [
        RecordedSource(f"{speaker}_{index}", speaker, 0, FS, 1.0, "")
        for speaker, count in counts.items()
        for index in range(count)
    ]


@pytest.mark.parametrize("counts", [{"a": 5, "b": 5, "c": 5}, {"a": 40, "b": 3, "c": 2}])
def test_pairs_are_different_and_of_two_speakers(counts):
    sources = sources_of(counts)
    pairs = draw_pairs(sources, 10**6, np.random.default_rng(0))
    names = [frozenset((first.source, second.source)) for first, second in pairs]
    assert len(set(names)) == len(names)
    assert all(first.speaker != second.speaker for first, second in pairs)
    possible = sum(a.speaker != b.speaker for a in sources for b in sources) // 2
    assert len(pairs) == possible  # every pair there is, and it ends


def test_sources_are_used_about_equally_often():
    sources = sources_of(dict.fromkeys("abcdefgh", 6))
    uses = Counter()
    for first, second in draw_pairs(sources, 96, np.random.default_rng(0)):
        uses.update((first.source, second.source))
    assert len(uses) == 48
    assert max(uses.values()) - min(uses.values()) <= 3


def test_one_speaker_makes_no_pair():
    assert draw_pairs(sources_of({"a": 9}), 5, np.random.default_rng(0)) == []


def test_generated_sources_are_the_same_for_the_same_seed():
    first = spoken_origins("valid", 3, 2, seed=4)
    assert len(first) == 6
    assert first == spoken_origins("valid", 3, 2, seed=4)
    assert first != spoken_origins("valid", 3, 2, seed=5)
