"""Directories that are ready for the Hugging Face Hub, and their upload."""

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..deploy.load import EXPORTED
from ..errors import InputError
from ..files import write_text
from ..models.checkpoint import save_checkpoint
from ..models.hub import upload
from ..train.inference import Trained, load_trained
from .card import PLACEHOLDER, model_card, public_name

__all__ = ["push_to_hub", "write_hub_folder"]

# By which Pillow turns colour into grey: ITU-R BT.601.
LUMA = (0.299, 0.587, 0.114)


def _take_colour(trained: Trained) -> None:
    """Let a network for grey pictures take RGB, with the answers that it gives to the same pictures turned grey.

    The normalised grey is the weighted sum of the normalised channels, for the weights come to 1; the convolution can
    take that sum.

    Raises:
        InputError: If it does not begin with a convolution of the one channel.
    """
    model: Any = trained.model
    conv: Any = model.get_submodule(model.pretrained_cfg["first_conv"])
    if not isinstance(conv, nn.Conv2d) or conv.groups != 1:
        raise InputError("the network takes grey pictures, and cannot be made to take colour; add --grey")
    with torch.no_grad():
        conv.weight = nn.Parameter(conv.weight * torch.tensor(LUMA).view(1, 3, 1, 1))
    conv.in_channels = 3
    if hasattr(model, "in_chans"):
        model.in_chans = 3
    config = trained.data_config
    config["input_size"] = (3, *config["input_size"][1:])
    config["mean"], config["std"] = 3 * tuple(config["mean"]), 3 * tuple(config["std"])


def write_hub_folder(
    source: str | os.PathLike,
    out: str | os.PathLike,
    *,
    repo_id: str | None = None,
    which: str = "best",
    license: str | None = None,
    grey: bool = False,
) -> list[str]:
    """Write a directory for the Hugging Face Hub: weights, configuration, model card and the pictures in it.

    timm loads it (`timm.create_model("local-dir:...")`), transformers' classes for timm's models too, and so do all
    commands of patnet that take a checkpoint. It is whole or not there.

    Args:
        source: A run folder, or any checkpoint.
        out: The directory, new or empty.
        repo_id: `OWNER/NAME` to name in the card's examples.
        which: `"best"` or `"last"` weights of a run folder.
        license: Of the weights, as the Hub writes it, such as apache-2.0.
        grey: Leave a network for grey pictures as it is. Otherwise it is made to take RGB, for other tools load
            pictures so; its answers stay the same.

    Returns:
        A sentence for each evaluation of the run that the card leaves out, for it evaluated other weights.

    Raises:
        InputError: If the source is no checkpoint, or the directory holds something or cannot be written.
    """
    if license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise InputError(f"--license {license}: give it as the Hugging Face Hub writes it, such as apache-2.0")
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists and is not empty; give another --out")
    if Path(source).suffix in EXPORTED:
        raise InputError(f"{source}: is exported already; give the run or checkpoint that it was made from")
    trained = load_trained(Path(source), which)
    model = trained.model
    spread = trained.data_config["input_size"][0] == 1 and not grey
    if spread:
        _take_colour(trained)
    card, pictures, left_out = model_card(trained, repo_id=repo_id, which=which, license=license, spread=spread)

    cfg = {key: value for key, value in model.pretrained_cfg.items() if key not in ("license", "url", "label_names")}
    if trained.run:
        cfg["tag"] = re.sub(r"\W+", "_", public_name(trained.run.read_config().data)).lower()
    model.pretrained_cfg = cfg | ({"license": license} if license else {})
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".writing-") as aside:
            written = Path(aside) / "written"
            save_checkpoint(model, written, data_config=trained.data_config, label_names=trained.class_names)
            for name, file in pictures.items():
                shutil.copyfile(file, written / name)
            write_text(written / "README.md", str(card))
            os.replace(written, out)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror or error}); give another --out") from error
    return left_out


def push_to_hub(
    source: str | os.PathLike,
    repo_id: str,
    *,
    which: str = "best",
    license: str | None = None,
    grey: bool = False,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
) -> str:
    """Upload a run or checkpoint to the Hugging Face Hub, with its model card.

    Args:
        source: A run folder, any checkpoint, or a directory that `write_hub_folder` wrote, which is then uploaded as it
            is; where its card says OWNER/NAME, the name is filled in.
        repo_id: `OWNER/NAME`; made if it does not exist.
        which: See `write_hub_folder`.
        license: See `write_hub_folder`.
        grey: See `write_hub_folder`.
        private: See `patnet.models.hub.upload`.
        revision: See `patnet.models.hub.upload`.
        create_pr: See `patnet.models.hub.upload`.
        token: See `patnet.models.hub.upload`.

    Returns:
        The address of the commit or, with `create_pr`, of the pull request.

    Raises:
        InputError: If the source cannot be used, or the Hub cannot be reached or refuses.
    """
    options: dict[str, Any] = {"private": private, "revision": revision, "create_pr": create_pr, "token": token}
    source = Path(source)
    card = source / "README.md"
    if card.is_file() and (source / "config.json").is_file():
        if license or grey:
            raise InputError(f"{source}: is written for the Hub already and uploaded as it is; leave out other options")
        text = card.read_text(encoding="utf-8")
        if PLACEHOLDER in text:
            write_text(card, text.replace(PLACEHOLDER, repo_id))
        return upload(source, repo_id, **options)
    with tempfile.TemporaryDirectory() as folder:
        write_hub_folder(source, Path(folder) / "model", repo_id=repo_id, which=which, license=license, grey=grey)
        return upload(Path(folder) / "model", repo_id, **options)
