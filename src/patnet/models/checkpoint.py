"""Reading and writing checkpoints: ours, timm's and the Hub's directories, Lightning's files, the authors' files."""

import json
import logging
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from timm.data import resolve_data_config
from timm.models import adapt_input_conv
from timm.models._features import FeatureGetterNet
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from ..errors import InputError
from ..files import atomic_write
from .hub import HUB, fetch
from .keys import infer_arguments, native_state_dict
from .pickles import is_torchscript, unsafe_globals

__all__ = [
    "Loaded",
    "UnsafeCheckpoint",
    "find_weights",
    "load_checkpoint",
    "load_weights",
    "read_checkpoint",
    "read_config",
    "read_tensors",
    "save_checkpoint",
]

logger = logging.getLogger("patnet")

# Names of the file of weights in a checkpoint directory, as the Hub has them.
_WEIGHTS_NAMES = ("model.safetensors", "pytorch_model.bin")


class UnsafeCheckpoint(InputError):
    """A checkpoint that was refused because loading it would run code; a damaged one is an `InputError` alone."""


@dataclass(frozen=True)
class Loaded:
    """A network that was loaded, and all that is needed to use it.

    Attributes:
        model: In evaluation mode.
        class_names: In the order of the logits.
        data_config: Preprocessing, as `timm.data.resolve_data_config` gives it: `input_size` (C, H, W), `mean`, `std`
            and so on.
        task: `"classification"` or `"detection"`.
        file: The file of weights, if there is one.
        run: The run directory that the weights come from, if they do.
        pretrained: False for a model of timm with new random weights.
    """

    model: nn.Module
    class_names: list[str]
    data_config: dict[str, Any]
    task: str = "classification"
    file: Path | None = None
    run: Path | None = None
    pretrained: bool = True


def find_weights(path: str | os.PathLike, checkpoint: str = "best") -> tuple[Path, Path | None]:
    """The file of weights that `path` names, and the run directory that it belongs to, if any.

    Args:
        path: A file, a checkpoint directory, a run directory, or `hf-hub:OWNER/NAME`, which is downloaded.
        checkpoint: `"best"` or `"last"`, of a run directory.

    Raises:
        InputError: If there is no such file.
    """
    directory = fetch(str(path)) if str(path).startswith(HUB) else Path(path)
    if not directory.exists():
        raise InputError(f"{path}: no such checkpoint; give a file of weights or a directory with config.json")
    if directory.is_file():
        return directory, None
    run = directory if (directory / "config.yaml").is_file() else None
    for folder in (directory, directory / checkpoint):
        for name in _WEIGHTS_NAMES:
            if (folder / name).is_file():
                return folder / name, run
    if run:
        raise InputError(f"{path}: the run has not finished an epoch yet, so it has no weights; resume it first")
    raise InputError(f"{path}: the directory has no model.safetensors; give a checkpoint directory or a run directory")


def read_tensors(file: Path) -> Mapping[str, Any]:
    """The contents of a file of weights on the CPU, as they are: `{key: tensor}`, perhaps with other entries.

    Raises:
        UnsafeCheckpoint: If it is a pickle that would run code on loading.
        InputError: If it cannot be read, is damaged, or is no mapping.
    """
    content: Any
    try:
        if file.suffix == ".safetensors":
            content = safetensors.torch.load_file(file)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what they say is part of the errors below
                content = torch.load(file, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from error
    except Exception as error:  # the readers raise a dozen types, depending on the byte that is wrong
        if is_torchscript(file):
            raise InputError(f"{file}: a TorchScript program; give a checkpoint of weights") from error
        if called := unsafe_globals(file):
            raise UnsafeCheckpoint(
                f"{file}: refused because it is a pickle that would run code on loading ({called[0]}); "
                "save the weights alone, as {name: tensor}"
            ) from error
        raise InputError(f"{file}: the checkpoint is damaged or cut short; copy it again") from error
    if not isinstance(content, Mapping):
        raise InputError(f"{file}: holds a {type(content).__name__} instead of {{name: tensor}}")
    return content


def read_config(file: Path) -> dict[str, Any]:
    """The `config.json` next to a file of weights in a checkpoint directory; empty if there is none.

    Raises:
        InputError: If it is not a JSON object.
    """
    path = file.with_name("config.json")
    if file.name not in _WEIGHTS_NAMES or not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a model configuration ({_first_line(error)}); copy it again") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: not a model configuration, because it is no JSON object; copy it again")
    return config


def read_checkpoint(path: str | os.PathLike, checkpoint: str = "best") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights under the names of our networks, and the description of the network that they belong to.

    Args:
        path: A `.safetensors` file, a directory with `config.json` and `model.safetensors`, a run directory, a
            Lightning checkpoint, a checkpoint of the authors, or `hf-hub:OWNER/NAME`.
        checkpoint: `"best"` or `"last"`, of a run directory.

    Returns:
        `{key: tensor}` on the CPU, and a dictionary with `architecture` and `model_args`, empty if they are not known.

    Raises:
        UnsafeCheckpoint: If it is a pickle that would run code on loading.
        InputError: If it is missing or damaged, has no weights, or is a detector's.
    """
    return _read(find_weights(path, checkpoint)[0])


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    config = read_config(file)
    if config.get("task") == "detection":
        raise InputError(f"{file.parent}: holds a detector, not a classifier; give it to patnet detect")
    content = read_tensors(file)
    try:
        weights = native_state_dict(content)
    except RecursionError as error:
        raise InputError(
            f"{file}: the checkpoint contains itself; save the weights alone, as {{name: tensor}}"
        ) from error
    if not weights:
        raise InputError(f"{file}: has no weights; a checkpoint maps names to tensors")
    described = config or content.get("hyper_parameters")
    if config and "architecture" not in config:
        raise InputError(f"{file.parent}: its config.json names no architecture; copy it again")
    if not isinstance(described, dict) or "architecture" not in described:
        return weights, {}
    for key, wanted in (("architecture", str), ("model_args", dict), ("pretrained_cfg", dict)):
        if not isinstance(described.get(key, wanted()), wanted):
            raise InputError(f"{file}: its {key} is a {type(described[key]).__name__} instead of a {wanted.__name__}")
    return weights, described


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _adapt(weights: dict[str, Tensor], model: Any) -> list[str]:
    """Adapt `weights` in place to the classes, input channels and stages of `model`; give a message for each change."""
    own = model.state_dict()
    said = []

    head = next((name for name, module in model.named_modules() if module is model.get_classifier()), "")
    given, wanted = weights.get(f"{head}.weight"), own.get(f"{head}.weight")
    if wanted is None:  # a backbone: no classifier, and perhaps fewer stages
        stages = {key.split(".")[1] for key in own if key.startswith("stages.")}
        for key in [key for key in weights if key not in own]:
            beyond = key.startswith("stages.") and key.split(".")[1] not in stages
            if beyond or key.startswith((f"{head}.", "classifier.", "conv_head.")):
                del weights[key]
    elif given is None or given.shape[0] != wanted.shape[0]:
        weights.update({key: own[key] for key in own if key.startswith(f"{head}.")})
        there = "none" if given is None else f"{given.shape[0]} classes"
        said.append(f"the classifier is newly initialised: {there} in the checkpoint, {wanted.shape[0]} classes here")

    stem = f"{model.pretrained_cfg['first_conv'] if hasattr(model, 'pretrained_cfg') else 'stem.conv'}.weight"
    if stem in weights and stem in own and weights[stem].shape[1] != own[stem].shape[1]:
        there, here = weights[stem].shape[1], own[stem].shape[1]
        weights[stem] = adapt_input_conv(here, weights[stem], base_chans=there)
        said.append(f"the first convolution was adapted from {there} to {here} input channels")

    norms = {key: own[key] for key in own if key.startswith("output_norms.")}
    given_norms = [key for key in weights if key.startswith("output_norms.")]
    if norms and not given_norms:
        weights.update(norms)
        said.append("the norms of the stage outputs are newly initialised: the checkpoint has none")
    for key in given_norms:
        if key not in norms:
            del weights[key]
    return said


def load_weights(model: nn.Module, path: str | os.PathLike) -> list[str]:
    """Load a checkpoint into a model of one's own.

    Reads safetensors files, directories in the layout of timm and the Hugging Face Hub, run directories, Lightning
    checkpoints, and the authors' files under their key names, with `weights_only=True` throughout. Another number of
    classes or input channels is adapted as in timm.

    Args:
        model: A classifier, or a `features_only` backbone.
        path: See `read_checkpoint`.

    Returns:
        A message for each adaptation, also logged as a warning.

    Raises:
        InputError: If the checkpoint cannot be read, or belongs to another architecture.
    """
    weights, _ = read_checkpoint(path)
    return _load_into(model, weights, path)


def _load_into(model: nn.Module, weights: dict[str, Tensor], path: str | os.PathLike) -> list[str]:
    target: Any = model.model if isinstance(model, FeatureGetterNet) else model
    if not hasattr(target, "get_classifier"):
        raise InputError(
            f"{path}: a {type(model).__name__} takes no checkpoint; load it into the full network, or make the "
            "backbone with feature_cls='getter'"
        )
    said = _adapt(weights, target)
    own = target.state_dict()
    faults = [
        f"{key} is {tuple(weights[key].shape)} in the checkpoint and {tuple(own[key].shape)} here"
        for key in weights
        if key in own and weights[key].shape != own[key].shape
    ]
    faults += [f"it lacks {key}" for key in own if key not in weights and not key.endswith("num_batches_tracked")]
    faults += [f"it has {key}, which the network lacks" for key in weights if key not in own]
    if faults:
        raise InputError(
            f"{path}: belongs to another architecture than this {type(target).__name__} ({faults[0]}); "
            "patnet.load builds the network that fits it"
        )
    target.load_state_dict(weights, strict=False)
    for message in said:
        logger.warning("%s: %s", path, message)
    return said


def _arguments(weights: dict[str, Tensor], described: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and arguments for `timm.create_model`, from the description or, without one, from the weights."""
    if not described:
        return infer_arguments(weights)
    # A description says which network to build, never where to take weights from.
    ignored = ("pretrained", "checkpoint_path", "cache_dir")
    args = {key: value for key, value in described.get("model_args", {}).items() if key not in ignored}
    if described.get("num_classes") is not None:
        args.setdefault("num_classes", described["num_classes"])
    pretrained_cfg = dict(described.get("pretrained_cfg") or {})
    if described.get("label_names"):
        pretrained_cfg["label_names"] = described["label_names"]
    name = described["architecture"]
    return name, args | {"pretrained_cfg": {"architecture": name, **pretrained_cfg} if pretrained_cfg else None}


def load_checkpoint(path: str | os.PathLike, checkpoint: str = "best", **kwargs: Any) -> Loaded:
    """Build the network that a checkpoint belongs to, and load it.

    The architecture comes from `config.json` or the hyper-parameters of a Lightning checkpoint. For weights alone it is
    inferred from their names and shapes: a PATNet of the standard blocks, of any width and depths, with or without
    PAT_sp, as the authors' files are. `kwargs` say what differs from that.

    Args:
        path: See `read_checkpoint`.
        checkpoint: `"best"` or `"last"`, of a run directory.
        **kwargs: Arguments of `timm.create_model` that override those of the checkpoint, for example `act_layer`,
            `num_classes`, `in_chans` or `features_only`.

    Returns:
        The network in evaluation mode, with class names and preprocessing.

    Raises:
        UnsafeCheckpoint: If it is a pickle that would run code on loading.
        InputError: If it cannot be read, or no network of ours or timm's fits it.
    """
    file, run = find_weights(path, checkpoint)
    weights, described = _read(file)
    try:
        name, args = _arguments(weights, described)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if not timm.is_model(name):
        raise InputError(f"{path}: holds a {name!r}, which is not a model of patnet or timm")
    try:
        model: Any = timm.create_model(name, **{**args, **kwargs})
    except Exception as error:  # a description can contain anything, and torch answers with its own types
        raise InputError(f"{path}: no {name} fits it ({_first_line(error)})") from error
    _load_into(model, weights, path)
    classes = int(getattr(model, "num_classes", 0))
    names = [str(label) for label in model.pretrained_cfg.get("label_names") or range(classes)] if classes else []
    if len(names) != classes:
        names = [str(index) for index in range(classes)] if "num_classes" in kwargs else names
    if len(names) != classes:
        raise InputError(f"{path}: names {len(names)} classes, but the network has {classes}")
    return Loaded(model.eval(), names, resolve_data_config(model=model), file=file, run=run)


def save_checkpoint(
    model: nn.Module,
    directory: str | os.PathLike,
    *,
    model_args: Mapping[str, Any] | None = None,
    data_config: Mapping[str, Any] | None = None,
    label_names: list[str] | None = None,
) -> Path:
    """Write `config.json` and `model.safetensors`, which `timm.create_model("local-dir:...")` loads.

    It is the layout of the Hugging Face Hub, which the classes of transformers for timm's models load too. Each file
    is replaced in one step, so that an earlier checkpoint is never left incomplete.

    Args:
        model: A model made by `timm.create_model`.
        directory: Made if it does not exist.
        model_args: Arguments beyond the architecture's own that rebuild the model.
        data_config: Preprocessing, as `timm.data.resolve_data_config` gives it.
        label_names: Names of the classes in their order.

    Raises:
        InputError: If the files cannot be written.
    """
    directory = Path(directory)
    cfg: Any = model.pretrained_cfg
    described: dict[str, Any] = {"pretrained_cfg": {**cfg, **(data_config or {})}}
    if label_names:
        described["label_names"] = label_names
    args = {**getattr(model, "_model_args", {}), **(model_args or {})}
    args |= {"in_chans": model.get_submodule(cfg["first_conv"]).in_channels, "num_classes": model.num_classes}
    # Weights may be channels-last in memory, which safetensors refuses.
    weights = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    with atomic_write(directory / "model.safetensors") as weights_file, atomic_write(directory / "config.json") as file:
        # timm's save_for_hf leaves out the format, which transformers asks for.
        safetensors.torch.save_file(weights, weights_file, {"format": "pt"})
        save_config_for_hf(model, str(file), model_config=described, model_args=args)
        config = json.loads(file.read_text(encoding="utf-8"))
        # It is an entry of the configuration itself, and transformers would give it to the network twice.
        del config["model_args"]["num_classes"]
        file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return directory
