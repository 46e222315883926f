"""Publishing a packed model: first a plan of every file, then, unless it is a dry run, the deed."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from espnet2_sepx.errors import UserError
from espnet2_sepx.files import atomic_write
from espnet2_sepx.report.collect import file_digest
from espnet2_sepx.zoo import hub
from espnet2_sepx.zoo.card import Facts, check_scores_belong_to, read_cost, read_summaries, render
from espnet2_sepx.zoo.pack import Pack, extract, local_paths, open_pack, read_config
from espnet2_sepx.zoo.table import TableRow, read_table, with_row, write_table

CARD = "README.md"


@dataclass(frozen=True)
class Request:
    """What to publish, and where.

    Attributes:
        pack: the archive.
        exp: its experiment, for scores and cost.
        name: of the model, may have parts separated by ``/``.
        licence: of the model.
        data_licence: what the training data are, and under which licence.
        zoo_dir: folder of a self-hosted zoo.
        zoo_url: web address at which ``zoo_dir`` is served; without, the table has file paths.
        hf_repo: ``user/name`` at Hugging Face.
        corpus, lang: columns of the zoo's table.
    """

    pack: str
    exp: str
    name: str
    licence: str | None
    data_licence: str | None
    zoo_dir: str | None = None
    zoo_url: str | None = None
    hf_repo: str | None = None
    corpus: str = ""
    lang: str = ""


@dataclass(frozen=True)
class Plan:
    """All that would be written, and all that is needed to write it."""

    request: Request
    pack: Pack
    card: str
    digest: str
    row: TableRow | None
    notes: tuple[str, ...]

    @property
    def zoo_pack(self) -> Path:
        """Path of the archive in the zoo folder."""
        assert self.request.zoo_dir is not None, "there is a row only with a zoo folder"
        return Path(self.request.zoo_dir) / archive_name(self.request.name, self.digest)

    def listing(self) -> list[str]:
        """One line per file: where, and how large."""
        card_size, pack_size = len(self.card.encode()), self.pack.path.stat().st_size
        lines = []
        if self.request.zoo_dir is not None:
            folder = self.zoo_pack.parent
            lines += [
                f"zoo folder {self.request.zoo_dir}:",
                f"{pack_size:>12,} bytes  {self.zoo_pack}",
                f"{_checksum_size(self.zoo_pack):>12,} bytes  {self.zoo_pack}.sha256",
                f"{card_size:>12,} bytes  {folder / CARD}",
                f"     one row in  {Path(self.request.zoo_dir) / 'table.csv'}: {self.row}",
            ]
        if self.request.hf_repo is not None:
            lines.append(f"Hugging Face repository {self.request.hf_repo}:")
            files = {**self.pack.sizes, CARD: card_size}
            lines += [f"{size:>12,} bytes  {name}" for name, size in sorted(files.items())]
        return lines


def archive_name(name: str, digest: str) -> str:
    """Path of an archive below the zoo folder; it changes with the content, as caches need."""
    return f"{name}/{name.rsplit('/', 1)[-1]}.{digest[:8]}.zip"


def make_plan(request: Request) -> Plan:
    """Check everything that can be checked without writing, and write the card."""
    _check(request)
    pack = open_pack(request.pack)
    summaries = read_summaries(request.exp)
    with tempfile.TemporaryDirectory(prefix="publish_") as folder:
        extract(pack, folder)
        check_scores_belong_to(request.exp, Path(folder) / pack.model_name)
    digest = file_digest(pack.path)
    config = read_config(pack)
    facts = Facts(
        name=request.name,
        config=config,
        summaries=summaries,
        cost=read_cost(request.exp),
        licence=str(request.licence),
        data_licence=str(request.data_licence),
        meta=pack.meta,
    )
    row, tags = None, []
    if request.hf_repo is not None:
        tags.append(request.hf_repo)
    if request.zoo_dir is not None:
        url = _url(request, digest)
        tags.append(url)
        row = {
            "corpus": request.corpus,
            "task": "enh",
            "name": request.name,
            "url": url,
            "fs": str(facts.sample_rate),
            "lang": request.lang,
            "pytorch": str(pack.meta.get("torch", "")),
            "espnet": str(pack.meta.get("espnet", "")),
            "valid": "true",
            "sha256": digest,
        }
    return Plan(request, pack, render(facts, tags), digest, row, _notes(facts, config))


def _check(request: Request) -> None:
    if not (request.licence or "").strip():
        raise UserError(
            "--licence: missing; a model is not published without one, for example "
            "--licence CC-BY-4.0"
        )
    if not (request.data_licence or "").strip():
        raise UserError(
            "--data_licence: missing; say what the training data are and under which licence, for "
            "example --data_licence 'LibriSpeech, CC-BY-4.0'"
        )
    if request.zoo_dir is None and request.hf_repo is None:
        raise UserError("nowhere to publish to: give --zoo_dir DIR, --hf_repo USER/NAME, or both")
    if not all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.,=+-]*", p) for p in request.name.split("/")):
        raise UserError(
            f"--name {request.name}: expected letters, digits and ._,=+- in parts separated by /; "
            "choose another name"
        )
    if request.zoo_url is not None and not re.match(r"https?://[^/\s]+", request.zoo_url):
        raise UserError(
            f"--zoo_url {request.zoo_url}: expected http:// or https:// and a host; correct it"
        )
    if request.hf_repo is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", request.hf_repo):
        raise UserError(f"--hf_repo {request.hf_repo}: expected USER/NAME; correct it")


def _url(request: Request, digest: str) -> str:
    assert request.zoo_dir is not None, "called with a zoo folder only"
    name = archive_name(request.name, digest)
    if request.zoo_url is None:
        return str((Path(request.zoo_dir) / name).absolute())
    return f"{request.zoo_url.rstrip('/')}/{quote(name)}"


def _notes(facts: Facts, config: dict) -> tuple[str, ...]:
    notes = []
    if facts.cost is None:
        notes.append("no profile/cost.json in the experiment, the card has no cost (stage 6)")
    paths = local_paths(config)
    if paths:
        notes.append(
            f"the configuration in the pack names {len(paths)} paths of this machine, such as "
            f"{paths[0]}; nobody needs them, but everybody can read them"
        )
    return tuple(notes)


def publish(plan: Plan) -> list[str]:
    """Carry the plan out; returns the addresses under which the model is found now."""
    found = []
    if plan.row is not None:
        publish_to_folder(plan)
        found.append(plan.row["url"])
    if plan.request.hf_repo is not None:
        with tempfile.TemporaryDirectory(prefix="publish_") as folder:
            extract(plan.pack, folder)  # as files, meta.yaml at the root: ESPnet's layout there
            (Path(folder) / CARD).write_text(plan.card, encoding="utf-8")
            found.append(hub.upload(folder, plan.request.hf_repo, f"Publish {plan.request.name}"))
    return found


def publish_to_folder(plan: Plan) -> None:
    """Archive, checksum and card first, the table last: it never names what is not there."""
    assert plan.row is not None, "planned without a folder"
    assert plan.request.zoo_dir is not None, "planned without a folder"
    target = plan.zoo_pack
    if not (target.is_file() and file_digest(target) == plan.digest):
        with open(plan.pack.path, "rb") as source, atomic_write(target, "wb") as stream:
            shutil.copyfileobj(source, stream)
    with atomic_write(f"{target}.sha256") as stream:
        stream.write(f"{plan.digest}  {target.name}\n")
    with atomic_write(target.parent / CARD) as stream:
        stream.write(plan.card)
    table = Path(plan.request.zoo_dir) / "table.csv"
    with _locked(table.parent):
        write_table(table, with_row(read_table(table), plan.row))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep others, who may publish at the same time, from changing the table in this block."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _checksum_size(path: Path) -> int:
    return 64 + 2 + len(path.name) + 1
