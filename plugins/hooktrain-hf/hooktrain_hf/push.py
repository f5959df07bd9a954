"""Pushing an export to the hub, which never ends a run."""

from __future__ import annotations

from pathlib import Path

from hooktrain_hf.location import first_line

__all__ = ["push"]


def push(folder: Path, to: str, private: bool | None = None) -> tuple[str, str]:
    """Push a folder to a repository of models, which is made where it is not there.

    Args:
        folder: what to push.
        to: ``organisation/name``, or ``organisation/name@branch``.
        private: whether a new repository is private; None leaves it to the organisation.

    Returns:
        Where it is now, and why it was not pushed; one of them is empty.
    """
    import huggingface_hub

    name, _, branch = to.partition("@")
    if huggingface_hub.is_offline_mode():
        return "", f"HF_HUB_OFFLINE is set; push it with `hf upload {name} {folder}`"
    try:
        api = huggingface_hub.HfApi()
        made = api.create_repo(name, private=private, exist_ok=True)
        if branch:
            api.create_branch(made.repo_id, branch=branch, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, revision=branch or None)
    except Exception as problem:  # whatever the network, the hub or its client has: the export is on disk
        return "", f"{type(problem).__name__}: {first_line(problem)}; push it with `hf upload {name} {folder}`"
    return str(made), ""
