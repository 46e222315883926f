"""A small data directory with noise signals, for the tests."""

from pathlib import Path

import numpy as np
import soundfile

from espnet2_sepx.data.kaldi import spk2utt_from_utt2spk, write_scp

SAMPLES = {"a_b_0": 1000, "a_b_1": 1501, "c_a_0": 800}


def make_data_directory(
    path: Path, fs: int = 8000, extension: str = "wav", subtype: str = "PCM_16", std: float = 0.05
) -> Path:
    """Three two-speaker mixtures with noise; each the exact sum of its parts."""
    rng = np.random.default_rng(0)
    audio = path.parent / f"{path.name}_audio"
    audio.mkdir()
    tables: dict[str, dict[str, str]] = {}

    def store(table: str, key: str, signal: np.ndarray) -> None:
        file = audio / f"{table}_{key}.{extension}"
        soundfile.write(file, signal, fs, subtype=subtype)
        tables.setdefault(f"{table}.scp", {})[key] = str(file)

    for key, samples in SAMPLES.items():
        parts = np.rint(rng.normal(0.0, std, (3, samples)) * 2**15) / 2**15
        for table, signal in zip(("spk1", "spk2", "noise1"), parts, strict=True):
            store(table, key, signal)
        store("wav", key, parts.sum(axis=0))
    for key in ("a-0", "b-0"):
        store("source", key, np.rint(rng.normal(0.0, std, 600) * 2**15) / 2**15)
    tables["utt2spk"] = {key: key[:3] for key in SAMPLES}
    tables["spk2utt"] = spk2utt_from_utt2spk(tables["utt2spk"])
    tables["utt2overlap"] = dict.fromkeys(SAMPLES, "0.5")
    tables["source2spk"] = {"a-0": "a", "b-0": "b"}
    for name, table in tables.items():
        write_scp(path / name, table)
    return path
