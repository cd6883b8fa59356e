"""Loading and saving: ours, timm's and the Hub's directories, Lightning's files, the authors' files."""

import json
import logging
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
from timm.data import resolve_data_config
from timm.models import adapt_input_conv
from timm.models._features import FeatureGetterNet
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from ..errors import InputError
from ..files import atomic_write
from ..nn import FusedConv2d, FusedLinear
from .keys import infer_arguments
from .reading import find_weights, read_checkpoint
from .stages import classifier_names, first_convolutions, input_channels, preprocessing_of, stages_of
from .threshold import Threshold, read_threshold

__all__ = ["Loaded", "load_checkpoint", "load_weights", "save_checkpoint"]

logger = logging.getLogger("patnet")

# Those of timm.data.create_transform.
INTERPOLATIONS = ["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos", "random"]
CROP_MODES = ["center", "squash", "border"]

HEAD_STD = 0.02  # of a classifier that starts anew over trained weights, where the model's own is far larger


@dataclass(frozen=True)
class Loaded:
    """A network that was loaded, and all that is needed to use it.

    Attributes:
        model: In evaluation mode.
        class_names: In the order of the logits; empty for a backbone.
        data_config: Preprocessing, as `timm.data.resolve_data_config` gives it: `input_size` (C, H, W), `mean`, `std`
            and so on.
        task: `"classification"` or `"detection"`.
        file: The file of weights, if there is one.
        run: The run directory that the weights come from, if they do.
        pretrained: False for a model of timm with new random weights.
        threshold: The decision threshold of a class, if one was chosen for these weights.
    """

    model: nn.Module
    class_names: list[str]
    data_config: dict[str, Any]
    task: str = "classification"
    file: Path | None = None
    run: Path | None = None
    pretrained: bool = True
    threshold: Threshold | None = None

    def order(self, probs: Tensor) -> Tensor:
        """The classes of each row of probabilities `(N, classes)`, the decided one first, the others by probability."""
        if self.threshold is None:
            return probs.argsort(dim=1, descending=True)
        return self.threshold.order(probs, self.class_names)


def _adapt_classifier(weights: dict[str, Tensor], own: dict[str, Tensor], heads: list[str]) -> list[str]:
    """Start a classifier of other classes anew, and small: large logits of random weights cost the first epochs.

    A head is one layer, or several of which the last one differs.
    """
    said = []
    for head in heads:
        keys = [key for key in own if key.startswith(f"{head}.")]
        if not any(key in weights for key in keys):
            given, anew = "none", keys
        else:
            anew = [key for key in keys if key in weights and weights[key].shape != own[key].shape]
            given = f"{len(weights[anew[0]])} classes" if anew else ""
        for key in anew:
            std = own[key].float().std().item() if own[key].dim() > 1 else 0.0
            scale = HEAD_STD / std if std > 2 * HEAD_STD else 1
            weights[key] = own[key] * (0 if key.endswith("bias") else scale)
        if anew:
            classes = f"{len(own[anew[-1]])} classes here"
            said.append(f"the classifier is newly initialised: {given} in the checkpoint, {classes}")
    return said


def _resample(weights: dict[str, Tensor], own: dict[str, Tensor], heads: list[str], target: nn.Module) -> list[str]:
    """Bring position embeddings of another image size to this one, as timm does for pretrained weights."""
    resample = getattr(sys.modules[type(target).__module__], "checkpoint_filter_fn", None)
    body = [key for key in own if not any(key.startswith(f"{head}.") for head in heads)]
    differ = [key for key in body if key in weights and weights[key].shape != own[key].shape]
    if resample is None or not all("pos_embed" in key or "relative_position" in key for key in differ) or not differ:
        return []
    weights.update(resample(dict(weights), target))
    return ["the position embeddings were resampled to this image size"]


def adapt_stem(weights: dict[str, Tensor], own: dict[str, Tensor], target: Any, prefix: str = "") -> list[str]:
    """Bring the first convolutions to another number of input channels, as timm does; gives a message if it did.

    Args:
        weights: Of the checkpoint; changed.
        own: Of the network.
        target: The timm model whose keys begin with `prefix`.
    """
    said: dict[str, None] = {}
    for name in first_convolutions(target) or ["stem.conv"]:
        stem = f"{prefix}{name}.weight"
        if stem in weights and stem in own and weights[stem].shape[1:2] not in ((), own[stem].shape[1:2]):
            channels, wanted = weights[stem].shape[1], own[stem].shape[1]
            weights[stem] = adapt_input_conv(wanted, weights[stem], base_chans=channels)
            said[f"the first convolution was adapted from {channels} to {wanted} input channels"] = None
    return list(said)


def _adapt_output_norms(weights: dict[str, Tensor], own: dict[str, Tensor]) -> list[str]:
    norms, given = ({key for key in state if key.startswith("output_norms.")} for state in (own, weights))
    for key in given - norms:
        del weights[key]
    if given or not norms:
        return []
    weights.update({key: own[key] for key in norms})
    return ["the norms of the stage outputs are newly initialised: the checkpoint has none"]


def _load_into(model: nn.Module, weights: dict[str, Tensor], path: str | os.PathLike) -> list[str]:
    target: Any = model.model if isinstance(model, FeatureGetterNet) else model
    if not hasattr(target, "get_classifier"):
        raise InputError(
            f"{path}: a {type(model).__name__} takes no checkpoint; load it into the full network, or make the "
            "backbone with feature_cls='getter'"
        )
    own = target.state_dict()
    heads = [name for name in classifier_names(target) if any(key.startswith(f"{name}.") for key in own)]
    if not heads:  # a backbone: no classifier, no layers before it, and perhaps fewer stages
        left = {name.rpartition(".")[0] for name in own}
        stages = [f"{stage['module']}." for stage in stages_of(target)]
        kept = tuple(stage for stage in stages if any(name.startswith(stage) for name in own))
        for key in [key for key in weights if key not in own and not key.startswith(kept)]:
            if key.rpartition(".")[0] not in left:
                del weights[key]
    said = [
        *_adapt_classifier(weights, own, heads),
        *adapt_stem(weights, own, target),
        *_adapt_output_norms(weights, own),
        *_resample(weights, own, heads, target),
    ]
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


def _described_arguments(described: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and arguments for `timm.create_model`, from a description."""
    # It says which network to build, never where to take weights from.
    ignored = ("pretrained", "checkpoint_path", "cache_dir")
    args = {key: value for key, value in described.get("model_args", {}).items() if key not in ignored}
    if described.get("num_classes") is not None:
        args.setdefault("num_classes", described["num_classes"])
    pretrained_cfg = dict(described.get("pretrained_cfg") or {})
    if described.get("label_names"):
        pretrained_cfg["label_names"] = described["label_names"]
    name = described["architecture"]
    args["pretrained_cfg"] = {"architecture": name, **pretrained_cfg} if pretrained_cfg else None
    return name, args


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
    weights, described = read_checkpoint(file)
    try:
        name, args = _described_arguments(described) if described else infer_arguments(weights)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if not timm.is_model(name):
        raise InputError(f"{path}: holds a {name!r}, which is not a model of patnet or timm")
    try:
        model: Any = timm.create_model(name, **{**args, **kwargs})
    except Exception as error:  # a description can contain anything, and torch answers with its own types
        first_line = str(error).partition("\n")[0]
        raise InputError(f"{path}: no {name} fits it ({first_line})") from error
    if described:
        channels = None if "in_chans" in kwargs else args.get("in_chans", 3)
        _check_data_config(resolve_data_config(model=model), channels, path)
    data_config = preprocessing_of(model)
    _load_into(model, weights, path)
    classes = getattr(model, "num_classes", 0)
    labels = [] if "num_classes" in kwargs else getattr(model, "pretrained_cfg", {}).get("label_names") or []
    if not isinstance(labels, list | tuple):
        raise InputError(f"{path}: its label_names are {labels!r} instead of a list")
    if labels and classes and len(labels) != classes:
        raise InputError(f"{path}: names {len(labels)} classes, but the network has {classes}")
    names = [str(label) for label in labels or range(classes)] if classes else []
    threshold = read_threshold(file)
    if threshold is not None and threshold.label not in names:
        threshold = None  # of a classifier that was replaced
    return Loaded(model.eval(), names, data_config, file=file, run=run, threshold=threshold)


def _check_data_config(data_config: Mapping[str, Any], channels: Any, path: str | os.PathLike) -> None:
    """Check the preprocessing of a description, which can contain anything."""
    size, mean, std, crop = (data_config[key] for key in ("input_size", "mean", "std", "crop_pct"))
    lists = all(isinstance(values, list | tuple) for values in (size, mean, std))
    if (
        not lists
        or not all(isinstance(n, int | float) and math.isfinite(n) for n in (*size, *mean, *std, crop))
        or not all(isinstance(n, int) and 0 < n < 1 << 15 for n in size)
        or len(size) != 3
        or not len(mean) == len(std) == size[0]
        or not all(n > 0 for n in std)
        or not 0.1 <= crop <= 10
        or data_config["interpolation"] not in INTERPOLATIONS
        or data_config["crop_mode"] not in CROP_MODES
        or channels not in (None, size[0])
    ):
        raise InputError(f"{path}: its preprocessing cannot be used ({dict(data_config)}); copy config.json again")


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
        InputError: If the network is fused, is no classifier made by timm, or the files cannot be written.
    """
    if not hasattr(model, "pretrained_cfg") or not hasattr(model, "num_classes"):
        raise InputError(
            f"{directory}: a {type(model).__name__} cannot be saved; give a classifier of timm.create_model"
        )
    if any(isinstance(module, FusedConv2d | FusedLinear) for module in model.modules()):
        raise InputError(f"{directory}: a fused network cannot be saved; save the one that it was made from")
    directory = Path(directory)
    cfg: Any = model.pretrained_cfg
    described: dict[str, Any] = {"pretrained_cfg": {**cfg, **(data_config or {})}}
    if label_names:
        described["label_names"] = label_names
    args = {**getattr(model, "_model_args", {}), **(model_args or {})}
    args.pop("global_pool", None)  # timm reads it from the network, in which `reset_classifier` may have changed it
    args |= {"in_chans": input_channels(model), "num_classes": model.num_classes}
    weights = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    with atomic_write(directory / "config.json") as config, atomic_write(directory / "model.safetensors") as file:
        # timm's save_for_hf refuses channels-last weights and names no format, which transformers looks for.
        # Its save_file raises no OSError on a full disk.
        file.write_bytes(safetensors.torch.save(weights, {"format": "pt"}))
        save_config_for_hf(model, str(config), model_config=described, model_args=args)
        content = json.loads(config.read_text(encoding="utf-8"))
        # It is an entry of the configuration itself, and transformers would give it to the network twice.
        del content["model_args"]["num_classes"]
        config.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return directory
