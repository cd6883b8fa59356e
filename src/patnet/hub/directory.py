"""Directories in the layout of the Hugging Face Hub, and their upload."""

import copy
import logging
import os
import re
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, HTTPError, LocalTokenNotFoundError
from torch import nn

from ..deploy import Exported
from ..errors import InputError
from ..files import atomic_directory, write_text
from ..models import Loaded, first_convolutions, load_checkpoint, save_checkpoint, save_threshold
from ..models.hub import one_line
from ..train.run import RunDirectory
from .card import PLACEHOLDER, model_card, public_name

logger = logging.getLogger("patnet")

LUMA = (0.299, 0.587, 0.114)  # by which Pillow converts colour to grey, ITU-R BT.601


def _take_rgb(loaded: Loaded) -> Loaded:
    """The network for grey images with a first convolution for RGB, so that it gives the outputs of the grey image.

    The weights of grey sum to 1, so the normalised grey value is the weighted sum of the normalised channels.
    """
    grey: Any = copy.deepcopy(loaded.model).float()
    model: Any = copy.deepcopy(grey)
    config = loaded.data_config
    image = torch.randn(1, *config["input_size"], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name in first_convolutions(model):
            conv = model.get_submodule(name)
            conv.weight = nn.Parameter(conv.weight * torch.tensor(LUMA).view(1, 3, 1, 1))
            conv.in_channels = 3
        model.in_chans = 3
        expected, found = grey(image), model(image.expand(-1, 3, -1, -1))
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item()):
        raise InputError(f"{loaded.file}: its first layer is not linear, so it cannot take RGB; give --grey to keep it")
    model.to(next(loaded.model.parameters()).dtype)
    size, mean, std = (3, *config["input_size"][1:]), 3 * tuple(config["mean"]), 3 * tuple(config["std"])
    return replace(loaded, model=model, data_config={**config, "input_size": size, "mean": mean, "std": std})


def write_hub_directory(
    loaded: Loaded,
    out: str | os.PathLike,
    *,
    repo_id: str | None = None,
    license: str | None = None,
    grey: bool = False,
) -> list[str]:
    """Write a directory for the Hugging Face Hub: weights, configuration, model card and its figures.

    timm loads it (`timm.create_model("local-dir:...")`), as do transformers' classes for timm's models and all commands
    of patnet that take a checkpoint. It is either complete or absent.

    Args:
        loaded: A classifier.
        out: The directory, new or empty.
        repo_id: `OWNER/NAME` in the examples of the card.
        license: Licence of the weights, an identifier of the Hub such as apache-2.0.
        grey: Keep a network for grey images as it is. Otherwise it is converted to take RGB, because other tools load
            images so; its outputs stay the same.

    Returns:
        A message for each evaluation of the run that the card leaves out, and why.

    Raises:
        InputError: If the network cannot be published so, or the directory is not empty or cannot be written.
    """
    if license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise InputError(f"--license {license}: give the Hugging Face Hub's identifier of it, such as apache-2.0")
    if isinstance(loaded.model, Exported) or loaded.task != "classification":
        raise InputError(f"{loaded.file}: only classifiers that are not exported fit the Hub's layout; give such a run")
    if not loaded.pretrained:
        raise InputError("the network has random weights; give a run directory or a checkpoint")
    with atomic_directory(Path(out), "give another --out") as directory:
        converted = loaded.data_config["input_size"][0] == 1 and not grey
        published = replace(loaded, model=copy.deepcopy(loaded.model).cpu().eval())
        if converted:
            published = _take_rgb(published)
        card, figures, left_out = model_card(published, repo_id=repo_id, license=license, converted=converted)
        cfg: Any = published.model.pretrained_cfg  # of a copy
        for key in ("license", "url", "label_names"):
            cfg.pop(key, None)
        details = {"license": license} if license else {}
        if loaded.run:
            details["tag"] = re.sub(r"\W+", "_", public_name(RunDirectory(loaded.run).read_config().data)).lower()
        data_config = {**published.data_config, **details}
        save_checkpoint(published.model, directory, data_config=data_config, label_names=loaded.class_names)
        if loaded.threshold is not None:
            save_threshold(loaded.threshold, directory / "model.safetensors")
        for name, file in figures.items():
            shutil.copyfile(file, directory / name)
        write_text(directory / "README.md", str(card))
    return left_out


def is_hub_directory(path: Path) -> bool:
    """Whether `write_hub_directory` wrote it."""
    return (path / "README.md").is_file() and (path / "config.json").is_file()


def push_to_hub(
    source: Loaded | str | os.PathLike,
    repo_id: str,
    *,
    license: str | None = None,
    grey: bool = False,
    **options: Any,
) -> str:
    """Upload a network to the Hugging Face Hub, with its model card.

    Args:
        source: A classifier, a run directory or checkpoint, or a directory of `write_hub_directory`, which is uploaded
            as it is, except that `OWNER/NAME` in its card becomes `repo_id`.
        repo_id: `OWNER/NAME`; created if it does not exist.
        license: See `write_hub_directory`.
        grey: See `write_hub_directory`.
        options: `private` for a new repository, `revision` (a branch), `create_pr` (propose the commit as a pull
            request), `token` (by default the one that `hf auth login` saved).

    Returns:
        The URL of the commit or, with `create_pr`, of the pull request.

    Raises:
        InputError: If the source cannot be published, or the Hub cannot be reached or refuses.
    """
    if not isinstance(source, Loaded) and is_hub_directory(Path(source)):
        if license or grey:
            raise InputError(f"{source}: is a directory for the Hub, uploaded as it is; leave out other options")
        card = Path(source, "README.md")
        text = card.read_text(encoding="utf-8")
        write_text(card, text.replace(PLACEHOLDER, repo_id))
        try:
            return upload(source, repo_id, **options)
        except InputError:
            write_text(card, text)
            raise
    loaded = source if isinstance(source, Loaded) else load_checkpoint(source)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        for message in write_hub_directory(loaded, model, repo_id=repo_id, license=license, grey=grey):
            logger.warning("%s; patnet evaluate measures these weights", message)
        return upload(model, repo_id, **options)


def upload(
    directory: str | os.PathLike,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    **options: Any,
) -> str:
    """Upload all files of a directory to a repository, made if it does not exist, see `push_to_hub`.

    Raises:
        InputError: If the Hub cannot be reached or refuses.
    """
    api = HfApi(token=token, library_name="patnet")
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id  # the given name may lack the owner
        commit = api.upload_folder(repo_id=repo_id, folder_path=Path(directory), commit_message="Add model", **options)
    except HFValidationError as error:
        raise InputError(f"{repo_id}: not a name on the Hugging Face Hub ({one_line(error)})") from error
    except (HTTPError, OSError) as error:
        refused = getattr(getattr(error, "response", None), "status_code", None) in (401, 403)
        login = refused or isinstance(error, LocalTokenNotFoundError)
        remedy = "hf auth login gives access" if login else "connect, and try again"
        raise InputError(f"{repo_id}: not uploaded to the Hugging Face Hub ({one_line(error)}); {remedy}") from error
    except ValueError as error:  # metadata of the card that the Hub refuses
        reason = " ".join(str(error).split())
        raise InputError(f"{directory}: the Hugging Face Hub refuses it ({reason}); correct it") from error
    return commit.pr_url or commit.commit_url
