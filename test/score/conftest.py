"""Signals that behave like speech, and small sets of files, for the tests of scoring."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

RATE = 8000


def speech_like(seed: int, seconds: float = 2.0, rate: int = RATE) -> np.ndarray:
    """Harmonics with a syllable rhythm and some noise: enough for PESQ and STOI to find speech."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * rate)) / rate
    phase = 2 * np.pi * np.cumsum(110 + 60 * rng.random() + 20 * np.sin(2 * np.pi * 1.3 * t)) / rate
    voice = sum(np.sin(k * phase + rng.random()) / k for k in range(1, 15))
    rhythm = np.clip(np.sin(2 * np.pi * (2 + rng.random()) * t + 6 * rng.random()), 0, None)
    return 0.1 * rhythm * (voice + 0.1 * rng.standard_normal(len(t)))


@pytest.fixture
def speech() -> Callable[..., np.ndarray]:
    return speech_like


class FileSet:
    """A data folder and a folder of estimates that a test can spoil in one place."""

    def __init__(self, folder: Path, utterances: int, seconds: float) -> None:
        self.ref, self.est, self.out = folder / "ref", folder / "est", folder / "out"
        self.scp: dict[str, dict[str, str]] = {
            name: {} for name in ("ref/wav", "ref/spk1", "ref/spk2", "est/spk1", "est/spk2")
        }
        for index in range(utterances):
            utt = f"utt{index}"
            s1, s2 = speech_like(2 * index, seconds), speech_like(2 * index + 1, seconds)
            noise = 0.003 * np.random.default_rng(99 + index).standard_normal((2, len(s1)))
            signals = {
                "ref/wav": s1 + s2,
                "ref/spk1": s1,
                "ref/spk2": s2,
                # Every other utterance comes out in the other order.
                "est/spk1": (s1, s2)[index % 2] + noise[0] + 0.05 * (s1 + s2),
                "est/spk2": (s2, s1)[index % 2] + noise[1],
            }
            for name, signal in signals.items():
                path = folder / name / f"{utt}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, signal, RATE, subtype="FLOAT")
                self.scp[name][utt] = str(path)
        self.write_scp()

    def write_scp(self) -> None:
        for name, mapping in self.scp.items():
            path = self.ref.parent / f"{name}.scp"
            path.write_text("".join(f"{k} {v}\n" for k, v in sorted(mapping.items())))

    def rewrite(self, name: str, utt: str, change: Callable, rate: int = RATE) -> str:
        path = self.scp[name][utt]
        audio, _ = soundfile.read(path)
        soundfile.write(path, change(audio), rate, subtype="FLOAT")
        return path


@pytest.fixture
def file_set(tmp_path: Path) -> Callable[..., FileSet]:
    def make(utterances: int = 2, seconds: float = 1.5) -> FileSet:
        return FileSet(tmp_path, utterances, seconds)

    return make
