"""The one place that talks to Hugging Face."""

from __future__ import annotations

from pathlib import Path

from espnet2_sepx.errors import UserError


def upload(folder: str | Path, repo: str, message: str, endpoint: str | None = None) -> str:
    """Make the repository if needed and upload a folder in one commit.

    Weights of an older version (``*.pth`` that are not in the folder) are removed by that commit.

    Args:
        folder: what to upload.
        repo: ``user/name``.
        message: of the commit.
        endpoint: address of the hub, default: that of ``huggingface_hub`` (``HF_ENDPOINT``).

    Returns:
        Address of the commit.
    """
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint, library_name="espnet")
    try:
        api.create_repo(repo, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=str(folder),
            commit_message=message,
            delete_patterns=["*.pth"],
        )
    except Exception as error:  # its classes differ between the majors of huggingface_hub
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"--hf_repo {repo}: {reason} (check the name and the network, and log in with "
            "'hf auth login' or the variable HF_TOKEN)"
        ) from error
    return str(commit.commit_url)


def download(repo: str, patterns: list[str]) -> Path:
    """Fetch the files of a repository that match ``patterns`` into the hub's cache.

    Args:
        repo: ``user/name``.
        patterns: glob patterns.

    Returns:
        Folder with the files.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, allow_patterns=patterns, library_name="espnet"))
    except Exception as error:  # its classes differ between the majors of huggingface_hub
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"{repo}: {reason} (check the name and the network, or download the files "
            f"{', '.join(patterns)} and give their folder)"
        ) from error
