"""Reading and writing weights: ours, timm's and the Hub's directories, Lightning's checkpoints, the authors' files."""

import json
import logging
import os
import pickle
import re
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import timm
import torch
from timm.models import adapt_input_conv
from timm.models._features import FeatureGetterNet
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from ..errors import InputError
from ..nn.block import MIXERS, MixerOptions
from ..nn.channel_attention import CHANNEL_ATTENTIONS
from ..nn.spatial_attention import SPATIAL_ATTENTIONS
from .hub import HUB, fetch
from .keys import native_state_dict

__all__ = [
    "from_checkpoint",
    "from_pretrained",
    "infer_arguments",
    "load_weights",
    "read_checkpoint",
    "save_checkpoint",
    "weights_file",
]

logger = logging.getLogger("patnet")

# The variant of each width; for another width only its activation counts.
_VARIANT_OF_WIDTH = {32: "t0", 48: "t1", 64: "t2", 96: "s", 128: "m", 160: "l"}
_METHOD_OF_BUCKETS = {81: "euclidean", 81**2: "product"}


def weights_file(path: Path) -> Path:
    """The file of weights that `path` names: itself, or the one in a checkpoint directory or a run's best.

    `hf-hub:OWNER/NAME` is fetched from the Hugging Face Hub.

    Raises:
        InputError: If there is none.
    """
    if str(path).startswith(HUB):
        path = fetch(str(path))
    if not path.exists():
        raise InputError(f"{path}: no such checkpoint; give a file of weights or a directory with config.json")
    if path.is_file():
        return path
    for directory in (path, path / "best"):
        for name in ("model.safetensors", "pytorch_model.bin"):
            if (directory / name).is_file():
                return directory / name
    if (path / "config.yaml").is_file():
        raise InputError(f"{path}: the run has not finished an epoch yet, so it holds no weights; resume it first")
    raise InputError(f"{path}: the directory holds no model.safetensors; give a checkpoint directory or a run folder")


def _one_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _read_config(weights: Path) -> dict[str, Any] | None:
    """The `config.json` beside a file of weights, in the layout of timm and the Hub."""
    file = weights.with_name("config.json")
    if weights.name not in ("model.safetensors", "pytorch_model.bin") or not file.is_file():
        return None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: not a model configuration ({_one_line(error)}); copy it again") from error
    if isinstance(config, dict) and "category_ids" in config:
        raise InputError(f"{file.parent}: holds a detector, not a classifier; patnet detect takes it")
    if not isinstance(config, dict) or "architecture" not in config:
        raise InputError(f"{file}: not a model configuration, for it names no architecture; copy it again")
    return config


def read_checkpoint(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights under our names, and what the file says of the network that they belong to.

    Args:
        path: A `.safetensors` file, a directory with `config.json` and `model.safetensors`, a run folder (its best
            weights), a Lightning checkpoint, a checkpoint of the authors, or `hf-hub:OWNER/NAME`.

    Returns:
        `{key: tensor}` on the CPU, and a dictionary with `architecture` and `model_args` where they are known.

    Raises:
        InputError: If the file is missing, cut short, a pickle that would run code, or holds no weights.
    """
    file = weights_file(Path(path))
    checkpoint: Any
    try:
        if file.suffix == ".safetensors":
            checkpoint = safetensors.torch.load_file(file)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what it warns of is said below
                checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error})") from error
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|[Uu]nsupported class)\W*([\w.]+)", str(error))
        if found:
            raise InputError(
                f"{file}: refused, for it is a pickle that would run code on loading ({found[1]}); "
                "save the weights alone, as {name: tensor}"
            ) from error
        raise InputError(
            f"{file}: refused, for it is no file of plain tensors: damaged, or a pickle that would run code; "
            "give a .safetensors, .pth or .ckpt file of weights"
        ) from error
    except Exception as error:  # the readers raise a dozen types, by the byte that is wrong
        if "TorchScript" in str(error):
            raise InputError(f"{file}: a TorchScript program; give a checkpoint of weights") from error
        raise InputError(f"{file}: the checkpoint is damaged or cut short; copy it again") from error
    if not isinstance(checkpoint, Mapping):
        raise InputError(f"{file}: holds a {type(checkpoint).__name__} in place of {{name: tensor}}")
    described = _read_config(file) or checkpoint.get("hyper_parameters")
    try:
        weights = native_state_dict(checkpoint)
    except RecursionError as error:
        raise InputError(f"{file}: the checkpoint holds itself; save the weights alone, as {{name: tensor}}") from error
    if not weights:
        raise InputError(f"{file}: holds no weights; a checkpoint maps names to tensors")
    if not isinstance(described, dict) or "architecture" not in described:
        return weights, {}
    for key, wanted in (("architecture", str), ("model_args", dict), ("pretrained_cfg", dict)):
        if not isinstance(described.get(key, wanted()), wanted):
            raise InputError(f"{file}: its {key} is a {type(described[key]).__name__} in place of a {wanted.__name__}")
    return weights, described


def _count(weights: Mapping[str, Tensor], pattern: str) -> int:
    return 1 + max((int(m[1]) for key in weights if (m := re.match(pattern, key))), default=-1)


def _shapes(weights: Mapping[str, Tensor], prefix: str = "") -> dict[str, tuple[int, ...]]:
    """Shapes by name below `prefix`; without the norms' counts of batches, which some checkpoints leave out."""
    return {
        key.removeprefix(prefix): tuple(value.shape)
        for key, value in weights.items()
        if key.startswith(prefix) and not key.endswith("num_batches_tracked")
    }


def _mixer_of(shapes: dict[str, tuple[int, ...]], dim: int, options: MixerOptions) -> tuple[str, str]:
    """Names of the first mixer and channel attention whose weights have these names and shapes."""
    for mixer, entry in MIXERS.items():
        for channel_attn in CHANNEL_ATTENTIONS:
            try:
                built = entry.build(dim, options._replace(channel_attn=channel_attn))
            except ValueError:  # of parts, heads or positions that do not fit
                break
            if _shapes(built.state_dict()) == shapes:
                return mixer, channel_attn
    raise InputError("the weights are not a PATNet's: no mixer has weights of the names and shapes of theirs")


def infer_arguments(weights: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """Variant and arguments of the PATNet that `weights` fit, read from their names and shapes.

    Some arguments leave no trace there. The activation is then the variant's own, GELU below 64 channels and ReLU
    from there on, and so are the heads where there is no table of positions; windows have the default size; a mixer
    at `partial_ratio=1` is taken for `"pconv"`, and window attention without positions for linear attention.

    Raises:
        InputError: If the names are not a PATNet's.
    """
    try:
        dim, in_chans = weights["stem.conv.weight"].shape[:2]
        depths = tuple(
            _count(weights, rf"stages\.{stage}\.blocks\.(\d+)\.") for stage in range(_count(weights, r"stages\.(\d+)"))
        )
        dims = [dim * 2**stage for stage in range(len(depths))]
        mixers = [_shapes(weights, f"stages.{stage}.blocks.0.mixer.") for stage in range(len(depths))]
        # The widest stage tells ratios most finely, and rounds to every other stage's widths.
        mlp_ratio = weights[f"stages.{len(depths) - 1}.blocks.0.mlp.conv1.weight"].shape[0] / dims[-1]
        convolved = [
            shapes["conv.weight"][0] / width
            for shapes, width in zip(mixers, dims, strict=True)
            if "conv.weight" in shapes
        ]
    except KeyError as error:
        raise InputError(f"the weights are not a PATNet's: {error} is missing among their names") from error
    except (IndexError, ValueError, ZeroDivisionError) as error:
        raise InputError("the weights are not a PATNet's: their shapes are not those of its convolutions") from error
    args: dict[str, Any] = {
        "embed_dim": dim,
        "in_chans": in_chans,
        "depths": depths,
        "mlp_ratio": mlp_ratio,
        "num_classes": 0,
    }
    if convolved:  # a full mixer convolves all, so does a part of 1
        args["partial_ratio"] = next((ratio for ratio in reversed(convolved) if ratio < 1), 1.0)
    tables = [shape for shapes in mixers for key, shape in shapes.items() if key.endswith("position.table")]
    args["position_method"] = _METHOD_OF_BUCKETS.get(tables[0][-1], "unknown") if tables else "none"
    if tables:
        args["num_heads"] = tables[0][0]
        args["position_mode"] = "bias" if len(tables[0]) == 2 else "contextual"
    for shapes in mixers:
        if "norm_all.running_mean" in shapes:
            args["ch_norm_position"] = "all"
        elif "norm_all.weight" in shapes:
            args["sf_norm_position"] = "after"

    known = {key: value for key, value in args.items() if key in MixerOptions._fields}
    options = MixerOptions(**{"num_heads": 1, **known}, device="meta")
    names = [_mixer_of(shapes, width, options) for shapes, width in zip(mixers, dims, strict=True)]
    args["mixers"] = tuple(mixer for mixer, _ in names)
    # Where it does not matter, the first one fits.
    args["channel_attn"] = next((attn for _, attn in names if attn != next(iter(CHANNEL_ATTENTIONS))), names[0][1])
    attention = _shapes(weights, "stages.0.blocks.0.mlp.attn.")
    args["spatial_attn"] = next(
        (
            name
            for name, entry in SPATIAL_ATTENTIONS.items()
            if _shapes(entry(dim, device="meta").state_dict()) == attention
        ),
        "unknown",
    )
    if "conv_head.weight" in weights:
        args["feature_dim"] = weights["conv_head.weight"].shape[0]
    if "classifier.weight" in weights:
        args["num_classes"] = weights["classifier.weight"].shape[0]
    if "output_norms.0.weight" in weights:
        args["output_norms"] = True
    variant = _VARIANT_OF_WIDTH.get(dim, "t0" if dim < 64 else "t2")
    return f"patnet_{variant}", args


def _fit(weights: dict[str, Tensor], model: Any) -> list[str]:
    """Adapt `weights` in place to the classes, channels and stages of `model`; give what was changed, in words."""
    own = model.state_dict()
    said = []

    head = next((name for name, module in model.named_modules() if module is model.get_classifier()), "")
    given, wanted = weights.get(f"{head}.weight"), own.get(f"{head}.weight")
    if wanted is None:  # a backbone: no head, and perhaps not every stage
        stages = _count(own, r"stages\.(\d+)\.")
        for key in list(weights):
            stage = re.match(r"stages\.(\d+)\.", key)
            beyond = stage is not None and int(stage[1]) >= stages
            if key not in own and (beyond or key.startswith((f"{head}.", "classifier.", "conv_head."))):
                del weights[key]
    elif given is not None and given.shape[0] != wanted.shape[0]:
        for key in (f"{head}.weight", f"{head}.bias"):
            weights[key] = own[key]
        said.append(f"the classifier starts anew: {given.shape[0]} classes there, {wanted.shape[0]} here")
    elif given is None:
        weights.update({key: own[key] for key in own if key.startswith(f"{head}.")})
        said.append(f"the classifier starts anew: none there, {wanted.shape[0]} classes here")

    stem = f"{model.pretrained_cfg['first_conv'] if hasattr(model, 'pretrained_cfg') else 'stem.conv'}.weight"
    if stem in weights and stem in own and weights[stem].shape[1] != own[stem].shape[1]:
        there, here = weights[stem].shape[1], own[stem].shape[1]
        weights[stem] = adapt_input_conv(here, weights[stem], base_chans=there)
        said.append(f"the first convolution was adapted from {there} to {here} input channels")

    own_norms = {key: value for key, value in own.items() if key.startswith("output_norms.")}
    given_norms = [key for key in weights if key.startswith("output_norms.")]
    if own_norms and not given_norms:
        weights.update(own_norms)
        said.append("the norms of the stage outputs start anew: the checkpoint has none")
    for key in given_norms:
        if key not in own_norms:
            del weights[key]
    return said


def load_weights(model: nn.Module, path: str | os.PathLike) -> list[str]:
    """Load a checkpoint into `model`.

    Reads our safetensors, directories in the layout of timm and the Hugging Face Hub, run folders, Lightning
    checkpoints, and the authors' files under their own key names, with `weights_only=True` throughout. Another
    number of classes or input channels is adapted as timm does it.

    Args:
        model: A PATNet, whole or as `features_only` backbone.
        path: See `read_checkpoint`.

    Returns:
        What was adapted, a sentence for each, also logged as warnings.

    Raises:
        InputError: If the checkpoint cannot be read, or belongs to another architecture.
    """
    weights, _ = read_checkpoint(path)
    return _load(model, weights, path)


def _load(model: nn.Module, weights: dict[str, Tensor], path: str | os.PathLike) -> list[str]:
    """Load weights that were read from `path`, see `load_weights`."""
    target: Any = model.model if isinstance(model, FeatureGetterNet) else model
    if not hasattr(target, "get_classifier"):
        raise InputError(
            f"{path}: a {type(model).__name__} takes no checkpoint; load it into the whole network, or make the "
            "backbone with feature_cls='getter'"
        )
    said = _fit(weights, target)
    own = target.state_dict()
    faults = [
        f"{key} is {tuple(weights[key].shape)} there and {tuple(own[key].shape)} here"
        for key in weights
        if key in own and weights[key].shape != own[key].shape
    ]
    faults += [f"it lacks {key}" for key in own if key not in weights and not key.endswith("num_batches_tracked")]
    faults += [f"it has {key}, which the network lacks" for key in weights if key not in own]
    if faults:
        raise InputError(
            f"{path}: belongs to another architecture than this {type(target).__name__} ({faults[0]}); "
            "patnet.from_checkpoint builds the network that fits it"
        )
    target.load_state_dict(weights, strict=False)
    for sentence in said:
        logger.warning("%s: %s", path, sentence)
    return said


def from_checkpoint(path: str | os.PathLike, **kwargs: Any) -> nn.Module:
    """Build the network that a checkpoint fits, and load it.

    The architecture comes from `config.json` or the hyper-parameters where the checkpoint has them, and otherwise
    from the names and shapes of its weights, see `infer_arguments`.

    Args:
        path: See `read_checkpoint`.
        **kwargs: Arguments of `timm.create_model` that override what was read, for example `act_layer`,
            `num_classes`, `in_chans` or `features_only`.

    Raises:
        InputError: If the checkpoint cannot be read, or no network of ours or timm's fits it.
    """
    weights, described = read_checkpoint(path)
    if described:
        name = described["architecture"]
        # The description says which network; where weights come from is not for it to say.
        given = described.get("model_args", {}).items()
        args = {key: value for key, value in given if key not in ("pretrained", "checkpoint_path", "cache_dir")}
        if described.get("num_classes") is not None:
            args.setdefault("num_classes", described["num_classes"])
        pretrained_cfg = dict(described.get("pretrained_cfg") or {})
        if described.get("label_names"):
            pretrained_cfg["label_names"] = described["label_names"]
        args["pretrained_cfg"] = {"architecture": name, **pretrained_cfg} if pretrained_cfg else None
    else:
        try:
            name, args = infer_arguments(weights)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        if "act_layer" not in kwargs and args["embed_dim"] not in _VARIANT_OF_WIDTH:
            logger.warning(
                "%s: weights do not tell the activation; that of %s is assumed, act_layer sets another", path, name
            )
    if not timm.is_model(name):
        raise InputError(f"{path}: holds a {name!r}, which is not a model of patnet or timm")
    try:
        model = timm.create_model(name, **{**args, **kwargs})
    except Exception as error:  # a description can ask for anything, and torch answers in its own types
        raise InputError(f"{path}: no {name} fits it ({_one_line(error)})") from error
    _load(model, weights, path)
    return model


def from_pretrained(name: str | os.PathLike, **kwargs: Any) -> nn.Module:
    """A network of the Hugging Face Hub, or of a directory in its layout, with its weights and in evaluation mode.

    Args:
        name: `OWNER/NAME`, with `@REVISION` if need be, or a path as `read_checkpoint` takes it.
        **kwargs: See `from_checkpoint`.

    Raises:
        InputError: If there is no such repository or path, or the Hub cannot be reached and its cache holds no copy.
    """
    local = str(name).startswith(HUB) or Path(name).exists()
    return from_checkpoint(name if local else f"{HUB}{name}", **kwargs).eval()


def save_checkpoint(
    model: nn.Module,
    directory: str | os.PathLike,
    *,
    model_args: Mapping[str, Any] | None = None,
    data_config: Mapping[str, Any] | None = None,
    label_names: list[str] | None = None,
) -> Path:
    """Write `config.json` and `model.safetensors`, which `timm.create_model("local-dir:...")` loads.

    It is the layout of the Hugging Face Hub, which transformers' classes for timm's models load too. Each file is
    written aside and moved into place, so that an earlier checkpoint is never left half replaced.

    Args:
        model: A model made by `timm.create_model`.
        directory: Where to; made if it does not exist.
        model_args: Arguments beyond the architecture's own that rebuild the model.
        data_config: Preprocessing, as `timm.data.resolve_data_config` gives it.
        label_names: Names of the classes in their order.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    cfg: Any = model.pretrained_cfg
    input_conv = model.get_submodule(cfg["first_conv"])
    described: dict[str, Any] = {"pretrained_cfg": {**cfg, **(data_config or {})}}
    if label_names:
        described["label_names"] = label_names
    args = {**getattr(model, "_model_args", {}), **(model_args or {})}
    args |= {"in_chans": input_conv.in_channels, "num_classes": model.num_classes}
    with tempfile.TemporaryDirectory(dir=directory, prefix=".writing-") as aside:
        # Weights may lie channels-last in memory, which safetensors does not write.
        weights = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
        safetensors.torch.save_file(weights, Path(aside) / "model.safetensors", {"format": "pt"})
        save_config_for_hf(model, f"{aside}/config.json", model_config=described, model_args=args)
        config = json.loads((Path(aside) / "config.json").read_text(encoding="utf-8"))
        # It stands in the configuration itself, and transformers would give it to the network twice.
        del config["model_args"]["num_classes"]
        (Path(aside) / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for name in ("model.safetensors", "config.json"):
            (Path(aside) / name).chmod(0o644)
            os.replace(Path(aside) / name, directory / name)
    return directory
