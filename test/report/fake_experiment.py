"""A small experiment folder with everything a report can show, made without training anything."""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
import yaml

from espnet2_sepx.data.kaldi import write_scp

FS = 8000
HOP, WINDOW = 64, 256
SEPARATOR_CONF = {
    "num_spk": 2, "num_channels": 8, "num_blocks": 2, "num_bands": 10, "sample_rate": FS,
    "t_module": "moe", "f_module": "moe", "num_experts": 4, "top_k": 1,
    "num_heads": 2, "head_dim": 4, "ffn_expansion": 2,
}  # fmt: skip


@dataclass
class FakeRecord:
    """Same fields as ``layers.moe.RoutingRecord``."""

    axis: str
    block: int
    ffn: int
    expert: torch.Tensor
    prob: torch.Tensor
    valid: torch.Tensor


def voice(pitch: float, seconds: float, seed: int) -> np.ndarray:
    """Harmonics in syllables: enough like speech for levels, pauses, pitch and pictures."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * FS)) / FS
    glide = pitch * (1 + 0.06 * np.sin(2 * np.pi * 1.7 * time + seed))
    phase = 2 * np.pi * np.cumsum(glide) / FS
    signal = np.zeros_like(time)
    for harmonic in range(1, int(0.45 * FS / pitch)):
        formant = 1 + 0.8 * np.sin(0.9 * harmonic + 2 * np.sin(2.3 * time + seed))
        signal += formant / harmonic * np.sin(harmonic * phase)
    syllables = np.clip(np.sin(2 * np.pi * 2.6 * time + rng.uniform(0, 6)) * 3 + 1.2, 0, 1)
    return 0.06 * signal * syllables + 1e-4 * rng.standard_normal(len(time))


def make_data(folder: Path, mixtures: int, seconds: float) -> Path:
    """A data folder with mixtures of a high and a low voice."""
    folder.mkdir(parents=True)
    scps: dict[str, dict[str, str]] = {"wav": {}, "spk1": {}, "spk2": {}}
    overlap = {}
    for index in range(mixtures):
        utt = f"low{index}_high{index}_{index:05d}"
        first = voice(105 + 4 * index, seconds, 2 * index)
        second = 0.8 * voice(205 + 5 * index, seconds, 2 * index + 1)
        for name, signal in (("wav", first + second), ("spk1", first), ("spk2", second)):
            path = folder / "audio" / name / f"{utt}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, signal, FS)
            scps[name][utt] = str(path)
        overlap[utt] = f"{(index + 0.5) / mixtures:.3f}"
    for name, mapping in scps.items():
        write_scp(folder / f"{name}.scp", mapping)
    write_scp(folder / "utt2overlap", overlap)
    return folder


def make_separated(folder: Path, data: Path) -> None:
    """Estimates with some leakage, every second pair in the wrong order, all at odd levels."""
    from espnet2_sepx.data.kaldi import read_scp

    references = [read_scp(data / f"spk{number}.scp") for number in (1, 2)]
    scps: list[dict[str, str]] = [{}, {}]
    for index, utt in enumerate(references[0]):
        first, second = (soundfile.read(scp[utt])[0] for scp in references)
        leak = 0.05 + 0.4 * index / len(references[0])
        estimates = [3 * (first + leak * second), 0.2 * (second + leak * first)]
        for number in range(2):
            path = folder / "wavs" / str(number + 1) / f"{utt}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, estimates[(number + index) % 2], FS, subtype="FLOAT")
            scps[number][utt] = str(path)
    for number, mapping in enumerate(scps):
        write_scp(folder / f"spk{number + 1}.scp", mapping)


def make_scores(exp: Path, data: Path) -> None:
    """Real scores of the package's own scorer (SI-SNR only, for speed)."""
    from espnet2_sepx.bin.score import main

    out, separated = exp / f"score_{data.name}", exp / f"separated_{data.name}"
    main(["--ref", str(data), "--est", str(separated), "--out", str(out), "--metrics", "si_snr"])


def reporter_stats(epochs: int, blocks: int = 2) -> dict:
    """What ESPnet's reporter collects, value types included."""
    rng = np.random.default_rng(0)
    stats: dict = {}
    for epoch in range(1, epochs + 1):
        stats[epoch] = {}
        for phase, offset in (("train", 0.0), ("valid", 0.8)):
            loss = 2 - 9 * (1 - np.exp(-epoch / 8)) + offset + 0.2 * rng.standard_normal()
            values = {"loss": np.float64(loss), "si_snr_loss": np.float64(loss - 0.01)}
            values["moe_balance"] = np.float64(9 + 3 * np.exp(-epoch / 5))
            for axis in "tf":
                for block in range(1, blocks + 1):
                    for ffn in (1, 2):
                        key = f"moe_{axis}{block}_ffn{ffn}"
                        values[f"{key}_balance"] = np.float64(1.1 + rng.random() / epoch)
                        values[f"{key}_max_share"] = np.float64(1.5 + rng.random())
                        values[f"{key}_alive"] = np.float64(4)
            values |= {"total_count": 40 * epoch, "time": datetime.timedelta(seconds=12)}
            if phase == "train":
                values |= {"iter_time": 0.01, "optim0_lr0": np.float64(1e-3)}
            stats[epoch][phase] = values
    return stats


def log_text(stats: dict) -> str:
    """The epoch lines of ESPnet's training log."""
    from espnet2.train.reporter import Reporter

    reporter = Reporter()
    reporter.stats = stats
    lines = ["# enh_train.py --use_preprocessor true"]
    for epoch in stats:
        reporter.set_epoch(epoch)
        message = reporter.log_message(epoch)
        lines.append(f"[host] 2026-01-01 00:00:00,000 (trainer:365) INFO: {message}")
    return "\n".join(lines) + "\n"


def config() -> dict:
    """The part of ESPnet's config.yaml that a report looks at."""
    return {
        "version": "202511",
        "seed": 0,
        "separator": "tf_moe",
        "separator_conf": SEPARATOR_CONF,
        "encoder": "stft",
        "encoder_conf": {"n_fft": WINDOW, "hop_length": HOP},
        "decoder": "stft",
        "decoder_conf": {"n_fft": WINDOW, "hop_length": HOP},
        "best_model_criterion": [["valid", "si_snr_loss", "min"]],
        "train_data_path_and_name_and_type": [["dump/8k/train/wav.scp", "speech_mix", "sound"]],
    }


def cost() -> dict:
    return {
        "schema": 2,
        "rules": "1",
        "config": "config.yaml",
        "separator": "tf_moe",
        "fs": FS,
        "seconds": 2.4,
        "input": "noise",
        "parameters": {
            "total": 123456,
            "trainable": 123456,
            "by_part": {
                "separator.band_split": 3456,
                "separator.blocks.time": 90000,
                "separator.mask_decoder": 30000,
            },
        },
        "macs_per_second": {
            "weights": 1.2e8,
            "all": 1.901e8,
            "executed": 1.901e8,
            "theoretical": 5e8,
            "ptflops": 1.3e8,
            "thop": 1.25e8,
            "torchprofile": None,
            "problems": {"torchprofile": "cannot be traced"},
            "elementwise": 1e6,
            "by_part": {
                "encoder.stft": {"weights": 0, "all": 1e5, "elementwise": 1e4},
                "separator.band_split": {"weights": 4e6, "all": 4e6, "elementwise": 0},
                "separator.blocks.time": {"weights": 1e8, "all": 1.7e8, "elementwise": 0},
                "separator.mask_decoder": {"weights": 1.6e7, "all": 1.6e7, "elementwise": 0},
            },
            "uncounted": {},
        },
        "rtf": {"median": 0.083, "min": 0.081, "max": 0.09, "threads": 1, "repeats": 5},
        "memory_mb": {"peak": 412.0, "baseline": 301.0},
        "conditional": {
            "utterances": 6,
            "seconds": 9.0,
            "theoretical": {"mean": 5e8, "p5": 5e8, "p50": 5e8, "p95": 5e8},
            "executed": {"mean": 1.9e8, "p5": 1.8e8, "p50": 1.9e8, "p95": 2e8},
            "by_segment": {
                "silence": {"seconds": 0.0},
                "one_speaker": {"seconds": 3.0, "mean": 1e8, "p5": 1e8, "p50": 1e8, "p95": 1e8},
                "overlap": {"seconds": 6.0, "mean": 2.3e8, "p5": 2e8, "p50": 2e8, "p95": 3e8},
            },
        },
        "other_runs": [{"device": "cpu", "threads": 2, "rtf": {"median": 0.05}}],
        "curves": [
            {
                "device": "cpu",
                "threads": 1,
                "points": [
                    {
                        "seconds": seconds,
                        "rtf": {"median": 0.08},
                        "memory_mb": {"peak": 300.0 + 10 * seconds, "baseline": 300.0},
                    }
                    for seconds in (1.0, 4.0)
                ],
                "stopped": None,
                "slope": {"time": 1.02, "memory": 1.0, "from_s": 1.0, "to_s": 4.0},
            }
        ],
        "streaming": None,
        "latency": {"algorithmic_samples": None, "algorithmic_ms": None},
        "environment": {"processor": "test CPU", "torch": torch.__version__},
    }


def make_experiment(root: Path, mixtures: int = 6, seconds: float = 1.5) -> tuple[Path, Path]:
    """A whole experiment but for the model. Returns (experiment, data folder)."""
    data = make_data(root / "dump" / "test", mixtures, seconds)
    exp = root / "exp" / "train_tf_moe_fake"
    (exp / "profile").mkdir(parents=True)
    make_separated(exp / "separated_test", data)
    make_scores(exp, data)
    (exp / "config.yaml").write_text(yaml.safe_dump(config()))
    (exp / "profile" / "cost.json").write_text(json.dumps(cost()))
    torch.save({"reporter": {"stats": reporter_stats(12), "epoch": 12}}, exp / "checkpoint.pth")
    (exp / "valid.si_snr_loss.best.pth").write_bytes(b"not opened: tests use a fake router")
    return exp, data


def fake_records(frames: int, bands: int = 10, blocks: int = 2, experts: int = 4) -> list:
    """Routing that follows time in T-modules and frequency in F-modules; expert 4 of F2 is dead."""
    rng = np.random.default_rng(frames)
    records = []
    for block in range(1, blocks + 1):
        for axis in ("frequency", "time"):
            for ffn in (1, 2):
                if axis == "time":
                    base = np.repeat(np.arange(frames)[:, None] * 9 // frames, bands, 1)
                else:
                    base = np.repeat(np.arange(bands)[None] * experts // bands, frames, 0)
                noise = rng.random((frames, bands)) < 0.2
                expert = np.where(noise, rng.integers(experts, size=base.shape), base + block)
                expert %= experts
                if axis == "frequency" and block == 2:
                    expert[expert == 3] = 0
                records.append(
                    FakeRecord(
                        axis,
                        block,
                        ffn,
                        torch.from_numpy(expert[None, :, :, None].astype(np.int16)),
                        torch.full((1, frames, bands, 1), 0.7),
                        torch.ones(1, frames, dtype=torch.bool),
                    )
                )
    return records


class FakeRouter:
    """Stands for ``report.routing.Router``."""

    num_experts = {"time": 4, "frequency": 4}  # noqa: RUF012

    def __init__(self, *_: object) -> None:
        class Separator:
            bands = None

        self.separator = Separator()

    def __call__(self, signal: np.ndarray, fs: int) -> list:
        return fake_records(1 + len(signal) // HOP)
