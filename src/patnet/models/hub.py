"""The Hugging Face Hub, through its own client: fetching checkpoints and uploading directories."""

import os
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from timm.models._hub import hf_split

from ..errors import InputError

__all__ = ["HUB", "fetch", "upload"]

# The prefix of a repository of the Hub, where a path is possible too; as in timm.
HUB = "hf-hub:"


def _one_line(error: Exception) -> str:
    """The line in an error of the Hub's client that has the reason."""
    cause = error.__cause__ or error
    lines = [line for line in str(cause).splitlines() if line.strip()]
    return (lines[0] if lines else type(cause).__name__).rstrip(".")


def fetch(name: str) -> Path:
    """The directory with `config.json` and the weights of a repository, kept in the Hub's cache on this machine.

    Args:
        name: `hf-hub:OWNER/NAME`, or `hf-hub:OWNER/NAME@REVISION`.

    Raises:
        InputError: If there is no such repository, or the Hub cannot be reached and its cache holds no copy.
    """
    try:
        repository, revision = hf_split(name.removeprefix(HUB))
        for weights in ("model.safetensors", "pytorch_model.bin"):
            found = Path(snapshot_download(repository, revision=revision, allow_patterns=["config.json", weights]))
            if (found / weights).is_file():
                break
    except GatedRepoError as error:
        raise InputError(f"{name}: its owner grants access on request; ask on its page, then hf auth login") from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise InputError(
            f"{name}: the Hugging Face Hub has no such model or revision, or it is private; "
            "check the name, or hf auth login"
        ) from error
    except (HFValidationError, AssertionError) as error:  # impossible names
        raise InputError(f"{name}: not a name on the Hugging Face Hub ({_one_line(error)})") from error
    except (HTTPError, OSError) as error:
        raise InputError(
            f"{name}: the Hugging Face Hub cannot be reached ({_one_line(error)}) and its cache here holds no copy; "
            "connect, or give a local directory"
        ) from error
    return found


def upload(
    directory: str | os.PathLike,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
    commit_message: str = "Add model",
) -> str:
    """Upload all files of a directory to a repository, which is made if it does not exist.

    Args:
        directory: In the layout of the Hub.
        repo_id: `OWNER/NAME`.
        private: Make a new repository private; an existing one stays as it is.
        revision: Branch.
        create_pr: Propose the commit as a pull request.
        token: Token to use instead of the one that `hf auth login` saved.
        commit_message: Message of the commit.

    Returns:
        The address of the commit or, with `create_pr`, of the pull request.

    Raises:
        InputError: If the Hub cannot be reached or refuses.
    """
    api = HfApi(token=token, library_name="patnet")
    try:
        # The given name may lack the owner.
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=Path(directory),
            revision=revision,
            create_pr=create_pr,
            commit_message=commit_message,
        )
    except HFValidationError as error:
        raise InputError(f"{repo_id}: not a name on the Hugging Face Hub ({_one_line(error)})") from error
    except (HTTPError, OSError) as error:
        refused = getattr(getattr(error, "response", None), "status_code", None) in (401, 403)
        known = not (refused or isinstance(error, LocalTokenNotFoundError))
        remedy = "connect, and try again" if known else "hf auth login gives access"
        raise InputError(f"{repo_id}: not uploaded to the Hugging Face Hub ({_one_line(error)}); {remedy}") from error
    except ValueError as error:  # metadata of the card that the Hub refuses
        reason = " ".join(str(error).split())
        raise InputError(f"{directory}: the Hugging Face Hub refuses it ({reason}); correct it") from error
    return commit.pr_url or commit.commit_url
