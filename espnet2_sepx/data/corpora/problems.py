"""What is wrong with a corpus on disk, by name, and in few lines."""

from __future__ import annotations

import os
from pathlib import Path

from espnet2_sepx.errors import UserError
from espnet2_sepx.files import atomic_write

_SHOWN = 5


class Problems:
    """Collects files that cannot be used, and the mixtures that go with them."""

    def __init__(self) -> None:
        self.reason_of: dict[str, str] = {}
        self.mixtures: dict[str, str] = {}

    def add(self, path: str, reason: str) -> None:
        self.reason_of[path] = reason

    def concern(self, mixture: str, path: str) -> None:
        """Note that a mixture cannot be made, for the first of its bad files."""
        self.mixtures.setdefault(mixture, path)

    def __bool__(self) -> bool:
        return bool(self.reason_of)

    def summary(self) -> str:
        """Reasons with counts and first files; a folder that is not there is one line."""
        groups: dict[str, list[str]] = {}
        folder_is_there: dict[str, bool] = {}
        for path, reason in self.reason_of.items():
            folder = os.path.dirname(path)
            if reason == "is missing" and not folder_is_there.setdefault(
                folder, os.path.isdir(folder)
            ):
                groups.setdefault("folder is missing", []).append(folder)
            else:
                groups.setdefault(reason, []).append(path)
        lines = []
        for reason, paths in groups.items():
            unique = list(dict.fromkeys(paths))
            more = f" and {len(unique) - _SHOWN} more" if len(unique) > _SHOWN else ""
            lines.append(f"  {reason} ({len(unique)}): {', '.join(unique[:_SHOWN])}{more}")
        return "\n".join(lines)

    def settle(self, what: str, total: int, listing: Path, skip_bad: bool) -> str:
        """Write the full list, and stop, or say what is left out.

        Args:
            what: name of the corpus, for the message.
            total: mixtures there should be.
            listing: file for the full list.
            skip_bad: go on without the mixtures concerned.

        Returns:
            The message to show when going on.

        Raises:
            UserError: ``skip_bad`` is False, or nothing is left.
        """
        with atomic_write(listing) as stream:
            for path, reason in sorted(self.reason_of.items()):
                stream.write(f"{path}: {reason}\n")
            for name, path in sorted(self.mixtures.items()):
                stream.write(f"mixture {name}: needs {path}\n")
        concerned = len(self.mixtures)
        message = (
            f"{what}: {len(self.reason_of)} file(s) cannot be used, {concerned} of {total} "
            f"mixtures concerned (all: {listing})\n{self.summary()}"
        )
        if concerned >= total:
            raise UserError(f"{message}\nnothing is left; is this the right folder?")
        if not skip_bad:
            raise UserError(
                f"{message}\nmend the files, or leave these mixtures out with --skip_bad true"
            )
        return message
