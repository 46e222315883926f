"""Generated speech: espeak-ng, driven through ctypes from the library in ``espeakng-loader``.

A *speaker* is a voice variant of espeak-ng with an accent, a pitch, and a spectral warp (playing
the 22.05 kHz signal a little faster or slower, which moves pitch and formants together, as a
shorter or longer vocal tract does). The variants themselves are shared out over the three sets,
near-copies of one another together, so a test speaker is a voice that training has never heard,
at whatever pitch.

Limits: the speech is intelligible formant synthesis, not natural; results on it rank systems, and
say little about levels on recordings. Whispering, singing, echoing and robot variants are left out.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeVar

import numpy as np
from scipy.signal import resample_poly

from espnet2_sepx.data.sentences import draw_sentence
from espnet2_sepx.errors import UserError

Item = TypeVar("Item")

ESPEAK_RATE = 22050  # Hz, of every formant voice of espeak-ng

ACCENTS = (
    "en-us",
    "en",
    "en-gb-scotland",
    "en-gb-x-rp",
    "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
    "en-029",
    "en-us-nyc",
)

# Voice variants per set. `low` voices speak near 100 Hz, `high` ones at 170-270 Hz.
# Variants made from one another (Gene/Gene2, Diogo/Henrique/Hugo, ...) stay together.
VARIANTS: dict[str, dict[str, tuple[str, ...]]] = {
    "train": {
        "low": (
            *("m1", "m2", "m4", "m5", "m7", "m8", "Alex", "Andy", "AnxiousAndy", "Diogo"),
            *("Henrique", "Hugo", "Lee", "Marco", "Mario", "Michael", "Mr serious", "Tweaky"),
            *("john", "pedro", "pablo", "Nguyen", "RicishayMax", "adam", "benjamin", "edward"),
            *("edward2", "boris", "croak", "ed", "fast", "max", "gustave", "ian", "iven2"),
            *("iven3", "iven4", "kaukovalta", "klatt2", "klatt3", "klatt4", "klatt5", "klatt6"),
            *("marcelo", "mike2", "norbert", "quincy", "sandro", "travis", "victor", "Reed"),
        ),
        "high": (
            *("f1", "f4", "Andrea", "Annie", "anika", "grandma", "shelby"),
            *("steph", "steph2", "steph3"),
        ),
    },
    "valid": {
        "low": ("m6", "Gene", "Gene2", "michel", "paul", "grandpa"),
        "high": ("f3", "aunty", "Alicia"),
    },
    "test": {
        "low": ("m3", "Denis", "Jacky", "Mike", "Storm", "david", "miguel", "rob", "robert"),
        "high": ("f2", "f5", "linda", "belinda"),
    },
}

# Pauses between words, in 10 ms. With next to none (0 to 30 ms) two voices overlap 94 % of the time
# speech is heard; with these 73 to 75 %, against 68 to 70 % in mixtures of recorded read speech.
_GAPS = (2, 20)

# Ranges of espeak's pitch (50 is the variant's own, 70 is 3.3 semitones up) and of the warp.
_NATURAL = ((35, 66), (0.92, 1.08))
_RAISED = ((62, 92), (1.10, 1.20))  # a low variant made into a shorter vocal tract


@dataclass(frozen=True)
class Speaker:
    """A generated voice; ``warp`` above 1 raises formants and pitch."""

    name: str
    voice: str
    pitch: int
    warp: float


@dataclass(frozen=True)
class Utterance:
    """What espeak-ng has to say, and how. ``gap`` is in units of 10 ms, ``rate`` in words/min."""

    voice: str
    pitch: int
    rate: int
    gap: int
    warp: float
    text: str


def draw_speakers(subset: str, count: int, seed: int) -> list[Speaker]:
    """``count`` speakers of a set, the same for the same seed; half of them low, half high.

    High ones are the female variants and, since those are few, low variants that were raised.
    """
    rng = np.random.default_rng([seed, *subset.encode()])
    low, high = VARIANTS[subset]["low"], VARIANTS[subset]["high"]
    natural_low = _endless([(variant, _NATURAL) for variant in low], rng)
    raised_low = [(variant, _RAISED) for variant in low[::3]]
    natural_high = [(variant, _NATURAL) for variant in high]
    any_high = _endless(natural_high + natural_high + raised_low, rng)
    speakers = []
    for index in range(count):
        variant, (pitches, warps) = next(natural_low if index % 2 == 0 else any_high)
        accent = ACCENTS[rng.integers(len(ACCENTS))]
        speakers.append(
            Speaker(
                name=f"{variant.replace(' ', '')}-{index:03d}",
                voice=f"{accent}+{variant}",
                pitch=int(rng.integers(*pitches)),
                warp=round(float(rng.uniform(*warps)), 2),
            )
        )
    return speakers


def _endless(items: list[Item], rng: np.random.Generator) -> Iterator[Item]:
    """Every item once in random order, again and again."""
    while True:
        for index in rng.permutation(len(items)):
            yield items[index]


def draw_utterance(speaker: Speaker, rng: np.random.Generator) -> Utterance:
    """A sentence of a speaker, with a pitch, tempo and pausing that vary a little."""
    return Utterance(
        voice=speaker.voice,
        pitch=speaker.pitch + int(rng.integers(-3, 4)),
        rate=round(rng.integers(145, 206) / speaker.warp),
        gap=int(rng.integers(*_GAPS)),
        warp=speaker.warp,
        text=draw_sentence(rng),
    )


def synthesize(utterance: Utterance, fs: int) -> np.ndarray:
    """Speech of an utterance at ``fs`` Hz, float64 in +-1, always the same for the same input.

    Raises:
        UserError: espeak-ng missing, or ``fs`` above what it can deliver.
    """
    if fs > ESPEAK_RATE:
        raise UserError(
            f"--fs {fs}: generated speech has {ESPEAK_RATE} Hz; "
            f"choose at most that, or give recordings with --speech_dir"
        )
    speech = _Espeak().speak(utterance) / 32768.0
    ratio = Fraction(fs / (ESPEAK_RATE * utterance.warp)).limit_denominator(500)
    return resample_poly(speech, ratio.numerator, ratio.denominator)


_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)
# Values of enums in espeak-ng/speak_lib.h.
_OUTPUT_SYNCHRONOUS = 2
_DONT_EXIT = 0x8000
_RATE, _VOLUME, _PITCH, _WORD_GAP = 1, 2, 3, 7
_POSITION_CHARACTER = 1
_CHARS_UTF8 = 1

_QUIET = 40  # of 200; at the default volume of 100 several variants clip


class _Espeak:
    """A freshly loaded espeak-ng for one utterance.

    Flutter, echo and noise generators keep static state that no call resets, so the same text
    would sound different depending on what was said before. Unloading the library after each
    utterance (2 ms) makes a waveform depend on its description alone, in any order and process.
    """

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError as error:
            raise UserError(
                "espeakng-loader is not installed, and generated speech needs it; "
                "run: pip install 'espnet2_sepx[mini]', or give recordings with --speech_dir"
            ) from error
        try:
            self._library = ctypes.CDLL(espeakng_loader.get_library_path())
            self._data_path = espeakng_loader.get_data_path()
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"espeak-ng cannot be loaded ({error}); "
                f"reinstall espeakng-loader, or give recordings with --speech_dir"
            ) from error

    def speak(self, utterance: Utterance) -> np.ndarray:
        """``-> (samples,)`` int16 at 22.05 kHz. Call it once."""
        blocks: list[np.ndarray] = []

        def collect(samples: Any, count: int, _events: Any) -> int:
            if samples and count > 0:
                blocks.append(np.ctypeslib.as_array(samples, (count,)).copy())
            return 0

        callback = _CALLBACK(collect)  # a name of its own keeps it alive during the calls
        data = os.open(self._data_path, os.O_RDONLY)
        try:
            self._start(utterance, callback, data)
            text = utterance.text.encode() + b"\0"
            self._library.espeak_Synth(
                ctypes.c_char_p(text),
                ctypes.c_size_t(len(text)),
                ctypes.c_uint(0),
                _POSITION_CHARACTER,
                ctypes.c_uint(0),
                ctypes.c_uint(_CHARS_UTF8),
                None,
                None,
            )
        finally:
            self._library.espeak_Terminate()
            ctypes.CDLL(None).dlclose(ctypes.c_void_p(self._library._handle))
            os.close(data)
        return np.concatenate(blocks)

    def _start(self, utterance: Utterance, callback: Any, data: int) -> None:
        espeak = self._library
        # espeak-ng has room for 160 characters of path, and the folder may lie deeper than that.
        path = self._data_path if len(self._data_path) < 120 else f"/proc/self/fd/{data}"
        if espeak.espeak_Initialize(_OUTPUT_SYNCHRONOUS, 500, path.encode(), _DONT_EXIT) < 0:
            raise UserError(f"espeak-ng cannot use {self._data_path}; reinstall espeakng-loader")
        ctypes.CDLL(None).srand(ctypes.c_uint(1))  # klatt voices draw their breath noise from it
        espeak.espeak_ng_SetRandSeed(ctypes.c_long(1))
        espeak.espeak_SetSynthCallback(callback)
        if espeak.espeak_SetVoiceByName(utterance.voice.encode()) != 0:
            raise UserError(
                f"espeak-ng has no voice {utterance.voice!r}; install the version of "
                f"espeakng-loader that constraints.txt names"
            )
        for parameter, value in (
            (_RATE, utterance.rate),
            (_VOLUME, _QUIET),
            (_PITCH, utterance.pitch),
            (_WORD_GAP, utterance.gap),
        ):
            espeak.espeak_SetParameter(parameter, value, 0)
