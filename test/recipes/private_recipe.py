"""A private copy of the recipes, so that tests leave the user's experiments alone."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--num_train", "12", "--num_valid", "4", "--num_test", "4"]
TINY_TRAINING = (
    "--max_epoch 3 --num_iters_per_epoch 4 --batch_size 2 --separator_conf num_blocks=1 "
    "--separator_conf num_channels=8 --separator_conf num_bands=12 "
    "--scheduler_conf first_cycle_steps=20 --scheduler_conf warmup_steps=2"
)


class Recipe:
    """`egs2/mini/tf_moe` copied to a folder of its own, with an experiment of a few seconds."""

    def __init__(self, folder: Path) -> None:
        generated = shutil.ignore_patterns("data", "dump", "audio", "exp")
        shutil.copytree(ROOT / "egs2", folder / "egs2", symlinks=True, ignore=generated)
        shutil.copytree(ROOT / "utils", folder / "utils", symlinks=True)
        self.corpus = folder / "egs2/mini"
        self.path = self.corpus / "tf_moe"
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "VIRTUAL_ENV": sys.prefix,
        }

    def command(self, *options: str) -> list[str]:
        """`run.sh` with the tiny settings, which `options` can override."""
        tiny = [*TINY, "--enh_tag", "tiny", "--enh_args", TINY_TRAINING, "--metrics", "si_snr sdr"]
        return [
            str(self.path / "run.sh"),
            *tiny,
            "--profile_seconds",
            "1",
            "--profile_curve",
            "",
            *options,
        ]

    def start(self, *options: str) -> subprocess.Popen:
        return subprocess.Popen(
            self.command(*options),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *options: str) -> str:
        """Run to the end and return what was printed; a failure shows it."""
        process = self.start(*options)
        output, _ = process.communicate()
        assert process.returncode == 0, output
        return output

    def fail(self, *options: str) -> str:
        """Run something that must fail with status 2, and return its last line."""
        process = self.start(*options)
        output, _ = process.communicate()
        assert process.returncode == 2, output
        return output.strip().splitlines()[-1]

    @property
    def experiment(self) -> Path:
        return self.path / "exp/tiny"
