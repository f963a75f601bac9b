"""Downloads a base model from Hugging Face, into the hub's own cache."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from tierwise.compression.checkpoint import CHECKPOINT_FILES, FORMS, choose_file
from tierwise.runtime.errors import ModelNotFoundError
from tierwise.runtime.files import disk_full_named


def download(
    spec: str, repo: str, revision: str | None, file: str | None
) -> tuple[Path, str | None]:
    """Fetches one GGUF file, or a transformers checkpoint, into the hub's own cache.

    Args:
        spec: What the user gave, for messages.
        file: The GGUF file meant; None to find out.

    Returns:
        The folder, and the GGUF file in it; None for a transformers checkpoint.

    Raises:
        ModelNotFoundError, UnsupportedModelError, ConfigError, DiskFullError: As `resolve_base`.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        with disk_full_named(Path(constants.HF_HUB_CACHE)):
            files = _list_files(repo, revision)
            at = f"@{revision}" if revision else ""
            chosen = choose_file(files, f"{repo}{at}", f"{repo}{at}:{{}}") if file is None else file
            if chosen is not None and chosen not in files:
                ggufs = ", ".join(sorted(name for name in files if name.endswith(".gguf")))
                raise ModelNotFoundError(
                    f"{repo}{at} has no file {chosen!r}; its GGUF files are: {ggufs or 'none'}"
                )
            wanted = list(CHECKPOINT_FILES) if chosen is None else [chosen, "README.md"]
            # Folders of a repository hold other formats (onnx/, original/): the top level only.
            wanted = [name for name in files if any(_matches(name, kind) for kind in wanted)]
            folder = Path(snapshot_download(repo, revision=revision, allow_patterns=wanted))
    except GatedRepoError as error:
        raise ModelNotFoundError(
            f"{repo!r} is gated: accept its terms on https://huggingface.co/{repo}, then log in "
            "on this machine with `hf auth login` (or set HF_TOKEN)."
        ) from error
    except RevisionNotFoundError as error:
        raise ModelNotFoundError(
            f"{repo!r} has no revision {revision!r}. Give a branch, tag or commit that it has, or "
            f"none for the newest: {repo}"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelNotFoundError(
            f"Hugging Face has no model {repo!r}, or it is private. Check the spelling; for a "
            f"private one log in with `hf auth login`. If a file was meant: give {FORMS}."
        ) from error
    except HFValidationError as error:
        raise ModelNotFoundError(
            f"{spec!r} is no Hugging Face id: {error}. Give {FORMS}."
        ) from error
    except _transport_errors() as error:
        raise ModelNotFoundError(
            f"{repo!r} is not in the local Hugging Face cache ({constants.HF_HUB_CACHE}) and "
            f"cannot be downloaded: {_reason(error)}. Connect (unset HF_HUB_OFFLINE), or run "
            f"`hf download {repo}` where there is a network and give the folder it prints."
        ) from error
    return folder, chosen


def is_cached(repo: str) -> bool:
    """Whether the hub's own cache has something of that repository."""
    from huggingface_hub import constants

    return (Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}").is_dir()


def _transport_errors() -> tuple[type[Exception], ...]:
    """What a failed request raises. The hub changed its HTTP library twice (requests, httpx,
    httpx2); its own error always descends from that library's."""
    from huggingface_hub.errors import HfHubHTTPError

    parents = [parent for parent in HfHubHTTPError.__bases__ if issubclass(parent, Exception)]
    return (OSError, *parents)


def _matches(name: str, kind: str) -> bool:
    return name == kind or ("/" not in name and fnmatch(name, kind))


def _reason(error: BaseException) -> str:
    """The first line of what went wrong: the hub's messages run over many."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _list_files(repo: str, revision: str | None) -> list[str]:
    """The repository's files, or those of its cached copy when the hub cannot be asked."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        siblings = HfApi().model_info(repo, revision=revision).siblings or []
        return [sibling.rfilename for sibling in siblings]
    except RepositoryNotFoundError:
        raise
    except _transport_errors():
        snapshot = _cached_snapshot(repo, revision or "main")
        if snapshot is None:
            raise
        files = (path for path in snapshot.rglob("*") if path.is_file())
        return [str(PurePosixPath(path.relative_to(snapshot))) for path in files]


def _cached_snapshot(repo: str, revision: str) -> Path | None:
    """Where the hub's cache keeps that revision (models--org--name/snapshots/commit)."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    ref = folder / "refs" / revision
    commit = ref.read_text().strip() if ref.is_file() else revision
    snapshot = folder / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None
