"""Small trees of every corpus as it lies on disk, of generated or (where it is) real speech.

Names, folders, headers and tables are those of the corpora; only the speech is another, and short.
"""

from __future__ import annotations

import csv
import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from scipy.signal import resample_poly

FS = 16000
WSJ0_SPEAKERS = {
    "si_tr_s": ["01t", "20g", "40n", "01x"],
    "si_dt_05": ["050", "22g"],
    "si_et_05": ["440", "445"],
}
LIBRI_SPEAKERS = {
    "train-clean-100": ["103", "1034", "4077"],
    "dev-clean": ["84", "1272"],
    "test-clean": ["61", "121"],
}
REAL_SPEECH = Path(__file__).resolve().parents[3] / "shared/data/speech/train"


@functools.lru_cache(maxsize=1)
def _real() -> list[np.ndarray]:
    """Some minutes of real speech, if it is there."""
    files = sorted(REAL_SPEECH.glob("so*/*.flac"))[::8][:60] if REAL_SPEECH.is_dir() else []
    return [soundfile.read(file)[0] for file in files]


def speech(name: str, seconds: float = 1.5, fs: int = FS) -> np.ndarray:
    """``(samples,)`` float64, different for each name, with silence at both ends."""
    rng = np.random.default_rng(list(name.encode()))
    samples = round(seconds * fs) + int(rng.integers(0, fs // 4))
    if real := _real():
        voice = real[int(rng.integers(len(real)))]
        return (
            np.resize(voice, samples)
            if fs == FS
            else np.resize(resample_poly(voice, 1, 2), samples)
        )
    pitch = rng.uniform(90, 250) / fs
    voice = np.sign(np.sin(2 * np.pi * pitch * np.arange(samples))) + 0.3 * rng.standard_normal(
        samples
    )
    syllables = np.repeat(rng.uniform(0.0, 0.2, samples // (fs // 8) + 1), fs // 8)[:samples]
    edge = fs // 16
    syllables[:edge] = syllables[-edge:] = 1e-4
    return voice * syllables


def write(path: Path, signal: np.ndarray, fs: int = FS, subtype: str = "PCM_16") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(str(path), signal, fs, subtype=subtype)


# -- WSJ0 ------------------------------------------------------------------------------------------


def utterances(folder: str, count: int = 3) -> list[str]:
    """Names such as ``01to030v``: speaker, kind of session, number."""
    return [f"{spk}{'oca'[n % 3]}03{n:02d}" for spk in WSJ0_SPEAKERS[folder] for n in range(count)]


def make_wsj0(root: Path, layout: str = "disks", seconds: float = 1.5) -> Path:
    """WSJ0: ``disks`` (as distributed, shorten-compressed), ``upper`` (merged, upper case,
    uncompressed sphere) or ``wav`` (merged, converted)."""
    disks = {"si_tr_s": "11-1.1", "si_dt_05": "11-6.1", "si_et_05": "11-14.1"}
    for folder in WSJ0_SPEAKERS:
        for utterance in utterances(folder):
            samples = np.rint(speech(utterance, seconds) * 2**14).astype(np.int16)
            speaker = utterance[:3]
            if layout == "disks":
                path = root / disks[folder] / "wsj0" / folder / speaker / f"{utterance}.wv1"
                data = sphere(samples, compressed=True)
                secondary = path.with_suffix(".wv2")
                secondary.parent.mkdir(parents=True, exist_ok=True)
                secondary.write_bytes(sphere(samples // 2, compressed=True))
            elif layout == "upper":
                path = root / "WSJ0" / folder.upper() / speaker.upper() / f"{utterance.upper()}.WV1"
                data = sphere(samples, compressed=False)
            else:
                write(root / "wsj0" / folder / speaker / f"{utterance}.wav", samples)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return root


def wsj0_pairs(count: dict[str, int]) -> dict[str, list[tuple[str, str, float]]]:
    """Utterances of two speakers and a level, per subset."""
    pools = {
        "tr": utterances("si_tr_s"),
        "cv": utterances("si_tr_s")[::-1],
        "tt": utterances("si_dt_05") + utterances("si_et_05"),
    }
    pairs: dict[str, list[tuple[str, str, float]]] = {}
    for subset, number in count.items():
        rng = np.random.default_rng(list(subset.encode()))
        chosen: dict[tuple[str, str], float] = {}
        while len(chosen) < number:
            first, second = rng.choice(pools[subset], 2, replace=False).tolist()
            if first[:3] != second[:3]:
                chosen[first, second] = float(f"{rng.uniform(0, 2.5):.5g}")
        pairs[subset] = [(first, second, level) for (first, second), level in chosen.items()]
    return pairs


def make_wsj0_lists(root: Path, pairs: dict[str, list[tuple[str, str, float]]]) -> Path:
    """Lists and active levels as in pywsj0-mix."""
    folder_of = {u: folder for folder in WSJ0_SPEAKERS for u in utterances(folder)}
    (root / "metadata/activlev").mkdir(parents=True)
    for subset, lines in pairs.items():
        with open(root / f"metadata/mix_2_spk_{subset}.txt", "w") as stream:
            for first, second, level in lines:
                entries = [f"wsj0/{folder_of[u]}/{u[:3]}/{u}.wav" for u in (first, second)]
                stream.write(f"{entries[0]} {level} {entries[1]} {-level} \n")
    for folder in WSJ0_SPEAKERS:
        with open(root / f"metadata/activlev/activlev_{folder}.txt", "w") as stream:
            for utterance in utterances(folder):
                stream.write(f"{utterance} {np.mean(speech(utterance) ** 2) / 4:.16e}\n")
    return root


def sphere(samples: np.ndarray, compressed: bool, fs: int = FS) -> bytes:
    """A NIST SPHERE file, as the LDC ships them."""
    coding = "pcm,embedded-shorten-v2.00" if compressed else "pcm"
    fields = [
        "NIST_1A\n   1024",
        f"sample_count -i {len(samples)}",
        "sample_n_bytes -i 2",
        "channel_count -i 1",
        "sample_byte_format -s2 01",
        f"sample_rate -i {fs}",
        f"sample_coding -s{len(coding)} {coding}",
        "end_head\n",
    ]
    header = "\n".join(fields).encode().ljust(1024)
    return header + (shorten(samples) if compressed else samples.astype("<i2").tobytes())


def shorten(samples: np.ndarray, block: int = 256) -> bytes:
    """A Shorten stream, version 2 (Robinson 1994): blocks of first differences, Rice coded."""
    bits: list[str] = []

    def unsigned(value: int, width: int) -> None:
        bits.append("0" * (value >> width) + "1")
        bits.append(format(value & ((1 << width) - 1), f"0{width}b") if width else "")

    def number(value: int) -> None:
        width = max(1, value.bit_length())
        unsigned(width, 2)
        unsigned(value, width)

    for value in (5, 1, block, 0, 0, 0):  # 16 bit little endian, one channel, ..., no mean, no skip
        number(value)
    previous = 0
    for start in range(0, len(samples), block):
        piece = samples[start : start + block].astype(int)
        if len(piece) < block:
            unsigned(5, 2)  # another block size
            number(len(piece))
        difference = np.diff(piece, prepend=previous)
        previous = int(piece[-1])
        folded = np.where(difference >= 0, 2 * difference, -2 * difference - 1)
        width = max(1, int(np.log2(np.mean(folded) + 1)))
        unsigned(1, 2)  # first difference
        unsigned(width - 1, 3)
        for value in folded.tolist():
            unsigned(value, width)
    unsigned(4, 2)  # end
    text = "".join(bits)
    text += "0" * (-len(text) % 32)
    return b"ajkg\x02" + int(text, 2).to_bytes(len(text) // 8, "big")


def make_mixture_tree(
    root: Path,
    subsets: dict[str, list[str]],
    kinds: dict[str, tuple[str, ...]],
    fs: int,
    subtype: str,
) -> Path:
    """Folders of mixtures that exist; ``kinds`` says what each mixture is the sum of."""
    parts = list(dict.fromkeys(part for names in kinds.values() for part in names))
    for subset, names in subsets.items():
        for name in names:
            signals = {part: speech(f"{name}{part}", 1.5, fs) for part in parts}
            length = min(map(len, signals.values()))
            signals = {part: np.rint(s[:length] * 2**13) / 2**15 for part, s in signals.items()}
            for kind, of in kinds.items():
                signals[kind] = np.sum([signals[part] for part in of], axis=0)
            for kind, signal in signals.items():
                write(root / subset / kind / f"{name}.wav", signal, fs, subtype)
    return root


# -- WHAM! -----------------------------------------------------------------------------------------


def wsj0_name(pair: tuple[str, str, float]) -> str:
    first, second, level = pair
    return f"{first}_{level:.8g}_{second}_{-level:.8g}"


def make_wham_noise(root: Path, pairs: dict[str, list[tuple[str, str, float]]]) -> Path:
    """wham_noise: stereo noises that begin before and end after their mixtures, and the gains."""
    for subset, lines in pairs.items():
        names = [f"{wsj0_name(pair)}.wav" for pair in lines]
        rng = np.random.default_rng(len(lines))
        starts = rng.integers(100, 9000, len(lines))
        for name, start in zip(names, starts, strict=True):
            noise = 0.02 * rng.standard_normal((start + 2 * FS + 3000, 2))
            write(root / subset / name, noise)
        table = {
            "utterance_id": np.array(names, dtype=object),
            "speech_start_sample_16k": starts,
        }
        for variant in ("16k_max", "16k_min", "8k_max", "8k_min"):
            table[f"scaling_wsjmix_{variant}"] = rng.uniform(0.5, 1.5, (len(lines), 2))
            table[f"scaling_wham_speech_{variant}"] = rng.uniform(0.5, 1.5, len(lines))
            table[f"scaling_wham_noise_{variant}"] = rng.uniform(0.5, 1.0, len(lines))
        (root / "metadata").mkdir(exist_ok=True)
        np.savez(root / "metadata" / f"scaling_{subset}.npz", **table)
    return root


# -- LibriSpeech and Libri2Mix ---------------------------------------------------------------------


def make_librispeech(root: Path, count: int = 3, seconds: float = 1.5) -> dict[str, list[str]]:
    """LibriSpeech; returns the paths of its utterances per part."""
    paths: dict[str, list[str]] = {}
    for part, speakers in LIBRI_SPEAKERS.items():
        for speaker in speakers:
            for n in range(count):
                path = f"{part}/{speaker}/5{n}/{speaker}-5{n}-{n:04d}.flac"
                write(root / path, speech(path, seconds))
                paths.setdefault(part, []).append(path)
    return paths


def make_librimix_tables(
    root: Path, paths: dict[str, list[str]], noises: list[str], rows: dict[str, int]
) -> Path:
    """A LibriMix checkout with tables over these utterances and noises."""
    folder = root / "metadata/Libri2Mix"
    folder.mkdir(parents=True)
    for part, count in rows.items():
        rng = np.random.default_rng(count)
        with open(folder / f"libri2mix_{part}.csv", "w", newline="") as stream:
            writer = csv.writer(stream)
            columns = "mixture_ID,source_1_path,source_1_gain,source_2_path,source_2_gain,"
            writer.writerow((columns + "noise_path,noise_gain").split(","))
            used = set()
            while len(used) < count:
                first, second = rng.choice(paths[part], 2, replace=False).tolist()
                if Path(first).parts[1] == Path(second).parts[1] or (first, second) in used:
                    continue
                used.add((first, second))
                gains = rng.uniform(0.2, 1.4, 3).tolist()
                name = f"{Path(first).stem}_{Path(second).stem}"
                noise = noises[int(rng.integers(len(noises)))]
                writer.writerow([name, first, gains[0], second, gains[1], noise, gains[2]])
    return root


# -- released as mixtures --------------------------------------------------------------------------


def make_lrs2_2mix(root: Path, count: int = 4) -> Path:
    names = {
        subset: [
            f"63303110664736{n}_0001{n}_0.5308_6339356267468615{n}_00010_-0.5308"
            for n in range(count)
        ]
        for subset in ("tr", "cv", "tt")
    }
    make_mixture_tree(
        root / "lrs2_rebuild/audio/wav16k/min", names, {"mix": ("s1", "s2")}, FS, "PCM_16"
    )
    return root


def make_echo2mix(root: Path, count: int = 4) -> Path:
    """Mixtures that are not the sum of the reverberant references, in folders of varied depth."""
    for subset in ("train", "val", "test"):
        for n in range(count):
            above = "VLzqgDo317F/0_7_meetingroom" if n % 2 else "17DRP5sb8fy/room"
            folder = root / "Echo2Mix" / subset / above / f"{1089 + n}_{2094 + n}"
            signals = [speech(f"{folder.name}{k}", 1.5) for k in (1, 2)]
            length = min(map(len, signals))
            first, second = (signal[:length] / 2 for signal in signals)
            noise = 0.01 * np.random.default_rng(n).standard_normal(length)
            write(folder / "mix.wav", first + second + noise)
            write(folder / "spk1_reverb.wav", first)
            write(folder / "spk2_reverb.wav", second)
    return root


# -- all of them -----------------------------------------------------------------------------------


class Corpora(NamedTuple):
    """Where each corpus lies, and how many mixtures its sets have."""

    wsj0: Path
    wsj0_lists: Path
    wham_noise: Path
    librispeech: Path
    librimix: Path
    lrs2_2mix: Path
    echo2mix: Path
    counts: dict[str, int]

    def count(self, corpus: str, name: str) -> int:
        """Mixtures of a set; `mini` has as many as the others."""
        return self.counts["test" if corpus in ("lrs2_2mix", "echo2mix") else name]

    def options(self, corpus: str) -> list[str]:
        """How `make_corpus` is told where they are."""
        places = {
            "wsj0_2mix": {"wsj0_dir": self.wsj0, "metadata_dir": self.wsj0_lists},
            "wham": {"wham_noise_dir": self.wham_noise, "wsj0_dir": self.wsj0},
            "libri2mix": {
                "librispeech_dir": self.librispeech,
                "wham_noise_dir": self.wham_noise,
                "metadata_dir": self.librimix,
            },
            "lrs2_2mix": {"lrs2_2mix_dir": self.lrs2_2mix},
            "echo2mix": {"echo2mix_dir": self.echo2mix},
        }
        return [word for name, path in places[corpus].items() for word in (f"--{name}", str(path))]


def build(root: Path, counts: dict[str, int], seconds: float = 1.5) -> Corpora:
    """All corpora below ``root``, with so many mixtures in train, valid and test."""
    pairs = wsj0_pairs({"tr": counts["train"], "cv": counts["valid"], "tt": counts["test"]})
    noise = make_wham_noise(root / "wham_noise", pairs)
    noises = [str(path.relative_to(noise)) for path in sorted(noise.glob("*/*.wav"))]
    paths = make_librispeech(root / "LibriSpeech", seconds=seconds)
    rows = {
        "train-clean-100": counts["train"],
        "dev-clean": counts["valid"],
        "test-clean": counts["test"],
    }
    return Corpora(
        wsj0=make_wsj0(root / "wsj0_disks", seconds=seconds),
        wsj0_lists=make_wsj0_lists(root / "pywsj0-mix", pairs),
        wham_noise=noise,
        librispeech=root / "LibriSpeech",
        librimix=make_librimix_tables(root / "LibriMix", paths, noises, rows),
        lrs2_2mix=make_lrs2_2mix(root / "lrs2", counts["test"]),
        echo2mix=make_echo2mix(root / "echo", counts["test"]),
        counts=counts,
    )
