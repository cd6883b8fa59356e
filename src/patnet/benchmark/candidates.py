"""What is measured: a network in a form, a runtime and a precision, on pictures of a size, with so many threads."""

import copy
import operator
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils.flop_counter import FlopCounterMode

from ..deploy import fuse
from ..deploy.runtimes import RUNTIMES
from ..errors import InputError, nearest
from ..models import from_checkpoint
from .published import FAMILY, peers, published

__all__ = ["Candidate", "Options", "Setting", "build", "calibration_pictures", "channels_of", "count", "expand"]

FORMS = ("fused", "trained")
MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
PRECISIONS = ("fp32", "tf32", "bf16", "fp16", "int8")
IN_TORCH = ("eager", "compile")


@dataclass(frozen=True)
class Setting:
    """What must be equal for two models to be compared: pictures, precision and threads."""

    size: int
    batch: int
    precision: str
    threads: int

    def __str__(self) -> str:
        threads = "one thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{self.size} px, batch {self.batch}, {self.precision}, {threads}"


@dataclass(frozen=True)
class Candidate:
    """A network as it is measured: what may be chosen to make it fast, in a setting."""

    model: str
    setting: Setting
    form: str
    runtime: str
    memory_format: str = "contiguous"

    @property
    def kind(self) -> tuple[str, str, str]:
        """What was chosen."""
        return self.form, self.runtime, self.memory_format

    @property
    def plain(self) -> bool:
        """Whether nothing was done to make it fast: as trained, in eager PyTorch."""
        return self.kind == ("trained", "eager", "contiguous")

    def __str__(self) -> str:
        layout = "" if self.memory_format == "contiguous" else f", {self.memory_format}"
        return f"{self.model} {self.form}, {self.runtime}{layout}"


@dataclass
class Options:
    """What to measure; the defaults are the six PATNets beside their FasterNets.

    Attributes:
        models: Names as timm knows them, run folders and checkpoints; empty for the family.
        peers: Add the models of other families that have a published accuracy.
        forms: Of `FORMS`; empty for both.
        runtimes: Names of `patnet.deploy.runtimes.RUNTIMES`; empty for those installed that fit the device.
        precision: Of `PRECISIONS`; empty for fp32 on the CPU and all but int8 on a GPU.
        batch: Pictures in a batch; empty for 1 and 16, on a GPU 1 and 128.
        chunks: Pictures at a time in which a batch may be computed on the CPU; empty for the powers of two.
        size: Sides of the pictures in px; empty for the size that a model's accuracy was published for, else its own.
        memory_formats: Of `MEMORY_FORMATS`, for PyTorch's runtimes.
        threads: Numbers of CPU threads.
        device: `cpu` or `cuda`.
        minutes: Measure no longer than this, and say what was left out; None for all there is.
        seconds: That a measurement in turns takes.
        memory: Measure peak memory on the CPU too, in a fresh process for each model's fastest candidate.
        calibration: Pictures that int8 is calibrated with.
        seed: Of the weights and the pictures.
        frugal: Set by `checked` where neither forms nor runtimes are named: then the form as trained is measured in
            eager for the first batch size and precision only, compiled networks in the first precision only, and on
            the CPU larger batches in what was fastest for one picture, in chunks of 1 and 4.
    """

    models: Sequence[str] = ()
    peers: bool = False
    forms: Sequence[str] = ()
    runtimes: Sequence[str] = ()
    precision: Sequence[str] = ()
    batch: Sequence[int] = ()
    chunks: Sequence[int] = ()
    size: Sequence[int] = ()
    memory_formats: Sequence[str] = ("contiguous",)
    threads: Sequence[int] = (1,)
    device: str = "cpu"
    minutes: float | None = None
    seconds: float = 4.0
    memory: bool = False
    calibration: int = 64
    seed: int = 0
    frugal: bool = False

    def checked(self) -> "Options":
        """The options with all that was left open filled in.

        Raises:
            InputError: In one sentence, for what cannot be measured.
        """
        _known("--device", [self.device], ("cpu", "cuda"))
        if self.device == "cuda" and not torch.cuda.is_available():
            raise InputError("--device cuda: PyTorch finds no GPU here; leave it out to measure on the CPU")
        models = list(dict.fromkeys([*(self.models or FAMILY), *(peers() if self.peers else ())]))
        for model in models:
            if not timm.is_model(model) and not Path(model).exists():
                hint = nearest(model, timm.list_models())
                raise InputError(f"no model {model!r}{hint}, nor a run or checkpoint here; patnet models lists ours")
        default = ("fp32",) if self.device == "cpu" else ("fp16", "bf16", "tf32", "fp32")
        batch = tuple(self.batch or ((1, 16) if self.device == "cpu" else (1, 128)))
        done = copy.copy(self)
        done.models, done.batch, done.precision = models, batch, tuple(self.precision or default)
        done.frugal = not self.forms and not self.runtimes
        done.chunks = tuple(self.chunks) or ((1, 4) if done.frugal else ())
        done.runtimes = self._runtimes()
        done.forms = tuple(self.forms or FORMS)
        _known("--forms", done.forms, FORMS)
        _known("--precision", done.precision, PRECISIONS)
        _known("--memory_formats", self.memory_formats, MEMORY_FORMATS)
        for option, values in (
            ("--batch", batch),
            ("--threads", self.threads),
            ("--size", self.size),
            ("--chunks", self.chunks),
        ):
            if any(value < 1 for value in values):
                raise InputError(f"{option} {' '.join(map(str, values))}: must be at least 1")
        cores = os.cpu_count() or 1
        if max(self.threads) > cores:
            raise InputError(f"--threads {max(self.threads)}: there are {cores} cores here")
        for option, value in (("--minutes", self.minutes), ("--seconds", self.seconds)):
            if value is not None and not 0 < value < float("inf"):
                raise InputError(f"{option} {value}: must be a number above 0")
        if self.calibration < max(batch):
            raise InputError(f"--calibration {self.calibration}: must be at least the batch size, {max(batch)}")
        for listed in fields(self):
            values = getattr(done, listed.name)
            if isinstance(values, (list, tuple)):
                setattr(done, listed.name, tuple(dict.fromkeys(values)))  # each once
        for precision in done.precision:
            if not any(runs(runtime, precision, self.device) for runtime in done.runtimes):
                raise InputError(
                    f"--precision {precision}: none of {', '.join(done.runtimes)} computes in it on a {self.device}"
                )
        return done

    def _runtimes(self) -> tuple[str, ...]:
        here = [name for name in RUNTIMES if self.device == "cpu" or name in IN_TORCH]
        if not self.runtimes:
            # Compiling for the CPU takes longer than all other runtimes together, and one of them is always faster.
            usual = [name for name in here if self.device == "cuda" or name != "compile"]
            return tuple(name for name in usual if not missing(name))
        for name in self.runtimes:
            _known("--runtimes", [name], RUNTIMES)
            if name not in here:
                raise InputError(
                    f"--runtimes {name}: is measured on the CPU only; on a GPU there are {', '.join(here)}"
                )
            if missing(name):
                raise InputError(
                    f"--runtimes {name}: {', '.join(missing(name))} not installed; "
                    f"pip install 'patnet[{RUNTIMES[name].extra}]'"
                )
        return tuple(self.runtimes)


def _known(option: str, values: Iterable[str], known: Iterable[str]) -> None:
    known = list(known)
    for value in values:
        if value not in known:
            raise InputError(f"{option} {value}: unknown{nearest(value, known)}; there are {', '.join(known)}")


def missing(runtime: str) -> list[str]:
    """The packages that a runtime takes and that are not installed."""
    return [package for package in RUNTIMES[runtime].packages if find_spec(package) is None]


def runs(runtime: str, precision: str, device: str) -> bool:
    """Whether a runtime computes in a precision on a device; PyTorch's half precisions are slow on most CPUs."""
    if device == "cpu" and runtime in IN_TORCH:
        return precision == "fp32"
    return precision in RUNTIMES[runtime].precisions


def network_of(model: str, device: str = "cpu") -> nn.Module:
    """A model of timm's with new weights, or the network of a run or checkpoint, in evaluation mode."""
    if timm.is_model(model):
        return timm.create_model(model, device=device).eval()
    return from_checkpoint(model).eval().to(device)


@lru_cache
def own_size(model: str) -> int:
    """Side in px for which a model's accuracy was published, else of its usual input, or a run's."""
    if model in published():
        return published()[model].size
    if timm.is_model(model):
        config = timm.get_pretrained_cfg(model)
        return int(config.input_size[-1]) if config else 224
    return int(resolve_data_config(model=network_of(model))["input_size"][-1])


def channels_of(network: nn.Module) -> int:
    """Channels of the pictures that a network takes: those of its first convolution."""
    return next(m.in_channels for m in network.modules() if isinstance(m, nn.Conv2d))


def expand(model: str, options: Options) -> dict[Setting, list[Candidate]]:
    """The candidates of a model by setting, the quickly prepared ones first; `options` must be checked."""
    order = sorted(options.runtimes, key=("eager", "onnxruntime", "openvino", "compile").index)
    found: dict[Setting, list[Candidate]] = {}
    for size in options.size or (own_size(model),):
        for batch in options.batch:
            for precision in options.precision:
                for threads in options.threads:
                    setting = Setting(size, batch, precision, threads)
                    found[setting] = [
                        Candidate(model, setting, form, runtime, layout)
                        for runtime in order
                        if runs(runtime, precision, options.device)
                        for form in options.forms
                        for layout in options.memory_formats
                        if (layout == "contiguous" or runtime in IN_TORCH)
                        and not (options.frugal and _unlikely(form, runtime, setting, options))
                    ]
    return {setting: candidates for setting, candidates in found.items() if candidates}


def _unlikely(form: str, runtime: str, setting: Setting, options: Options) -> bool:
    """Whether a candidate takes long and is not what anyone would use."""
    first = setting.batch == options.batch[0] and setting.precision == options.precision[0]
    if form == "trained":
        return runtime != "eager" or not first
    return runtime == "compile" and setting.precision != options.precision[0]


def build(model: str, form: str, *, seed: int = 0) -> nn.Module:
    """A network in evaluation mode, on the CPU; a model of timm's with seeded random weights.

    The fused form is `patnet.fuse`'s, and the norms that are left behind a convolution are folded into it, so that no
    model is slower than its runtime need be.
    """
    torch.manual_seed(seed)
    network = network_of(model)
    return network if form == "trained" else fold_norms(fuse(network))


class _Tracer(torch.fx.Tracer):
    """Takes timm's norm with activation for one module."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, BatchNormAct2d) or super().is_leaf_module(m, module_qualified_name)


def fold_norms(network: nn.Module) -> nn.Module:
    """The network with the batch norms folded that follow a convolution directly; the same one if it is not traceable.

    `patnet.fuse` does this for PATNets, and for others only what timm provides, which for many networks is nothing.
    """
    if not any(isinstance(m, nn.BatchNorm2d) for m in network.modules()):
        return network
    network = copy.deepcopy(network)
    try:
        graph = _Tracer().trace(network)
    except Exception:  # tracing fails in as many ways as there are networks
        return network
    modules: dict[str, Any] = dict(network.named_modules())
    uses: dict[Any, int] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            uses[node.target] = uses.get(node.target, 0) + 1
    for node in list(graph.nodes):
        if node.op != "call_module" or not isinstance(modules[node.target], nn.BatchNorm2d):
            continue
        before = node.args[0]
        if before.op != "call_module" or len(before.users) > 1 or uses[before.target] > 1 or uses[node.target] > 1:
            continue
        conv, norm = modules[before.target], modules[node.target]
        if type(conv) is not nn.Conv2d or norm.running_mean is None:
            continue
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        parent, _, child = node.target.rpartition(".")
        after = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
        setattr(operator.attrgetter(parent)(network) if parent else network, child, after)
    return torch.fx.GraphModule(network, graph).eval()


def count(network: nn.Module, size: int) -> tuple[int, float]:
    """Parameters, and GMACs (convolutions, linear layers, attention) for one picture of `size` px.

    Raises:
        InputError: If the network does not take pictures of this size.
    """
    parameters = sum(p.numel() for p in network.parameters())
    device = next(network.parameters()).device
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.zeros(1, channels_of(network), size, size, device=device))
    except Exception as error:  # each network raises its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"--size {size}: the network does not take pictures of {size}x{size} px ({reason})") from error
    return parameters, counter.get_total_flops() / 2e9


def check_sizes(options: Options) -> dict[str, float]:
    """GMACs of all models at their first size, counted without memory for them.

    Raises:
        InputError: If a network does not take pictures of a size.
    """
    found: dict[str, float] = {}
    for model in options.models:
        network = network_of(model, "meta")
        for size in options.size or (own_size(model),):
            try:
                gmacs = count(network, size)[1]
            except InputError as error:
                raise InputError(str(error).replace("the network", model, 1)) from error
            found.setdefault(model, gmacs)
    return found


def calibration_pictures(count: int, channels: int, size: int, seed: int) -> tuple[Tensor, str]:
    """Pictures `(count, channels, size, size)` for int8, and what they are: ELPV's cells if installed, else noise."""
    if find_spec("elpv_dataset") is None:
        noise = torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed))
        return noise, f"{count} pictures of seeded noise (elpv-dataset is not installed)"
    from ..data import eval_transform, read_image
    from ..data.elpv import cells

    transform = eval_transform(
        {
            "input_size": (channels, size, size),
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "mean": (0.5,) * channels,
            "std": (0.25,) * channels,
        }
    )
    training = [Path(cell.path) for cell in cells() if not cell.test]
    chosen = training[:: max(1, len(training) // count)][:count]
    return torch.stack([transform(read_image(path)) for path in chosen]), f"{len(chosen)} training pictures of ELPV"
