"""Audio files of any kind in, separated streams out; neither is ever held in memory as a whole.

Legend: N samples, C channels, S speakers, n samples of a block.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import soundfile
from numpy.typing import NDArray

from espnet2_sepx.errors import UserError
from espnet2_sepx.files import temporary_beside

Block = NDArray[np.float32]

SUBTYPES = ("FLOAT", "PCM_16", "PCM_24")
_LARGEST_WAV = 2**32 - 2**16  # bytes of samples; the header counts in 32 bits
_PCM_PEAK = 1.0 - 2.0**-15  # the largest value that 16 bits have
_BLOCK_S = 1.0


class Recording:
    """An open audio file.

    Attributes:
        fs, channels, samples: as the header says.

    Raises:
        UserError: it cannot be opened, is no audio, or holds nothing.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            mode = self.path.stat().st_mode
            if not stat.S_ISREG(mode):
                kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
                raise UserError(f"{path}: is {kind}; give an audio file (pipes: --stream)")
            if self.path.stat().st_size == 0:
                raise UserError(f"{path}: is an empty file; replace it")
            with open(self.path, "rb"):  # says why, where libsndfile only says "System error"
                pass
            self._file = soundfile.SoundFile(str(path))
        except soundfile.LibsndfileError as error:
            raise UserError(
                f"{path}: is not audio that libsndfile reads ({error.error_string}); convert it "
                "to WAV or FLAC"
            ) from error
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}; check the path") from error
        self.fs = int(self._file.samplerate)
        self.channels = int(self._file.channels)
        self.samples = int(self._file.frames)
        if self.samples == 0:
            self._file.close()
            raise UserError(f"{path}: holds no samples; replace it")

    @property
    def seconds(self) -> float:
        return self.samples / self.fs

    def blocks(self) -> Iterator[Block]:
        """The samples, about a second at a time, ``(n, C)``.

        Raises:
            UserError: NaN, infinity, or an end before the one that the header states.
        """
        done = 0
        while done < self.samples:
            try:
                block = self._file.read(
                    max(round(_BLOCK_S * self.fs), 1), dtype="float32", always_2d=True
                )
            except (soundfile.LibsndfileError, OSError) as error:
                raise UserError(self._damaged(done, str(error))) from error
            if not len(block):
                raise UserError(self._damaged(done, "the file ends there"))
            finite = np.isfinite(block).all(1)
            if not finite.all():
                bad = (done + int(np.argmin(finite))) / self.fs
                raise UserError(
                    f"{self.path}: has NaN or infinite samples (at {bad:.3f} s); repair it"
                )
            done += len(block)
            yield block

    def _damaged(self, done: int, reason: str) -> str:
        return (
            f"{self.path}: is damaged after {done / self.fs:.2f} s of {self.seconds:.2f} s "
            f"({reason}); restore it"
        )

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class TrackWriter:
    """One audio file per speaker, written as the streams come; all appear at once, or none.

    Float tracks hold what was written. PCM tracks share one gain, at most 1, so that nothing is
    clipped and relative levels stay; it is known at the end, hence the second pass over a
    temporary float file.

    Args:
        paths: one file per speaker.
        fs: in Hz.
        channels: C of each file.
        samples: N to come, which decides between WAV and RF64 (above 4 GB).
        subtype: "FLOAT", "PCM_16" or "PCM_24".

    Attributes:
        gain: applied to all tracks; final when the block has ended.
    """

    def __init__(
        self, paths: Sequence[Path], fs: int, channels: int, samples: int, subtype: str = "FLOAT"
    ) -> None:
        if subtype not in SUBTYPES:
            raise ValueError(f"subtype must be one of {SUBTYPES}, got {subtype!r}")
        self.paths = list(paths)
        self.gain = 1.0
        self._fs, self._channels, self._subtype = fs, channels, subtype
        self._format = "RF64" if 4 * channels * samples > _LARGEST_WAV else "WAV"
        self._peak = 0.0
        self._temporary: list[Path] = []
        self._files: list[soundfile.SoundFile] = []

    def __enter__(self) -> TrackWriter:
        try:
            for path in self.paths:
                self._temporary.append(temporary_beside(path))
                self._files.append(self._open(self._temporary[-1], "FLOAT"))
        except BaseException:
            self._discard()
            raise
        return self

    def write(self, block: Block) -> None:
        """Append ``(S, C, n)``."""
        if block.shape[2]:
            self._peak = max(self._peak, float(np.abs(block).max()))
        for path, file, track in zip(self.paths, self._files, block, strict=True):
            _write(file, track.T, path)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            for file, path in zip(self._files, self.paths, strict=True):
                _close(file, path)
            self._files.clear()
            if kind is None:
                if self._subtype != "FLOAT":
                    self._quantise()
                for temporary, path in zip(self._temporary, self.paths, strict=True):
                    os.replace(temporary, path)
        except OSError as problem:
            raise _cannot_write(self.paths[0], problem) from problem
        finally:
            self._discard()

    def _quantise(self) -> None:
        self.gain = min(1.0, _PCM_PEAK / self._peak) if self._peak > 0 else 1.0
        for index, path in enumerate(self.paths):
            floats = self._temporary[index]
            self._temporary.append(floats.with_name(f"{floats.name}.pcm"))
            target = self._open(self._temporary[-1], self._subtype)
            try:
                with soundfile.SoundFile(str(floats)) as source:
                    for block in source.blocks(self._fs, dtype="float32", always_2d=True):
                        _write(target, self.gain * block, path)
            finally:
                _close(target, path)
            os.replace(self._temporary.pop(), floats)

    def _open(self, path: Path, subtype: str) -> soundfile.SoundFile:
        try:
            return soundfile.SoundFile(
                str(path), "w", self._fs, self._channels, subtype, format=self._format
            )
        except (soundfile.LibsndfileError, OSError) as error:
            raise _cannot_write(path, error) from error

    def _discard(self) -> None:
        for file in self._files:
            file.close()
        for path in self._temporary:
            path.unlink(missing_ok=True)


def _write(file: soundfile.SoundFile, block: Block, path: Path) -> None:
    try:
        file.write(block)
    except (soundfile.LibsndfileError, AssertionError, OSError) as error:  # partly written: assert
        raise _cannot_write(path, error) from error


def _close(file: soundfile.SoundFile, path: Path) -> None:
    try:
        file.close()
    except (soundfile.LibsndfileError, OSError) as error:
        raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: BaseException) -> UserError:
    reason = getattr(error, "strerror", None) or str(error) or "the disk did not take all of it"
    return UserError(
        f"{path}: cannot be written ({reason}); free some space, or choose another --output"
    )
