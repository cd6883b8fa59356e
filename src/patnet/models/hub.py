"""Checkpoints from the Hugging Face Hub, through its own client."""

from pathlib import Path
from typing import Any

import timm
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from timm.models._hub import hf_split

from ..errors import InputError

__all__ = ["HUB", "fetch", "hub_name", "one_line"]

# The prefix of a repository of the Hub, where a path is possible too; as in timm.
HUB = "hf-hub:"


def one_line(error: Exception) -> str:
    """The line in an error of the Hub's client that has the reason."""
    cause = error.__cause__ or error
    lines = [line for line in str(cause).splitlines() if line.strip()]
    return (lines[0] if lines else type(cause).__name__).rstrip(".")


def hub_name(model: str) -> str:
    """Where the Hub has timm's weights of a model, `hf-hub:OWNER/NAME`.

    Args:
        model: Name of a model of timm, with or without the tag of its weights: `resnet18` or `resnet18.a1_in1k`.

    Raises:
        InputError: If timm has none of it.
    """
    try:
        cfg: Any = timm.get_pretrained_cfg(model)
    except RuntimeError:  # no such tag
        cfg = None
    if cfg is None or not cfg.hf_hub_id:
        tags = timm.list_pretrained(f"{model.partition('.')[0]}.*")
        remedy = f"choose from {', '.join(tags)}" if tags else "give a checkpoint, or another model"
        raise InputError(f"{model}: no pretrained weights are published in timm; {remedy}")
    return HUB + cfg.hf_hub_id


def fetch(name: str) -> Path:
    """The directory with weights, configuration and threshold of a repository, kept in the Hub's cache on this machine.

    Args:
        name: `hf-hub:OWNER/NAME`, or `hf-hub:OWNER/NAME@REVISION`.

    Raises:
        InputError: If there is no such repository, or the Hub cannot be reached and its cache holds no copy.
    """
    try:
        repository, revision = hf_split(name.removeprefix(HUB))
        for weights in ("model.safetensors", "pytorch_model.bin"):
            wanted = ["config.json", "threshold.json", weights]
            found = Path(snapshot_download(repository, revision=revision, allow_patterns=wanted))
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
        raise InputError(f"{name}: not a name on the Hugging Face Hub ({one_line(error)})") from error
    except (HTTPError, OSError) as error:
        raise InputError(
            f"{name}: the Hugging Face Hub cannot be reached ({one_line(error)}) and its cache here holds no copy; "
            f"connect, or fetch https://huggingface.co/{repository}/resolve/{revision or 'main'}/model.safetensors "
            "elsewhere and give that file"
        ) from error
    return found
