"""Trees of all corpora, made once."""

from pathlib import Path
from typing import NamedTuple

import pytest
import trees


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


@pytest.fixture(scope="session")
def corpora(tmp_path_factory) -> Corpora:
    root = tmp_path_factory.mktemp("corpora")
    return build(root, {"train": 12, "valid": 3, "test": 4})


def build(root: Path, counts: dict[str, int], seconds: float = 1.5) -> Corpora:
    pairs = trees.wsj0_pairs({"tr": counts["train"], "cv": counts["valid"], "tt": counts["test"]})
    noise = trees.make_wham_noise(root / "wham_noise", pairs)
    noises = [str(path.relative_to(noise)) for path in sorted(noise.glob("*/*.wav"))]
    paths = trees.make_librispeech(root / "LibriSpeech", seconds=seconds)
    rows = {
        "train-clean-100": counts["train"],
        "dev-clean": counts["valid"],
        "test-clean": counts["test"],
    }
    return Corpora(
        wsj0=trees.make_wsj0(root / "wsj0_disks", seconds=seconds),
        wsj0_lists=trees.make_wsj0_lists(root / "pywsj0-mix", pairs),
        wham_noise=noise,
        librispeech=root / "LibriSpeech",
        librimix=trees.make_librimix_tables(root / "LibriMix", paths, noises, rows),
        lrs2_2mix=trees.make_lrs2_2mix(root / "lrs2", counts["test"]),
        echo2mix=trees.make_echo2mix(root / "echo", counts["test"]),
        counts=counts,
    )
