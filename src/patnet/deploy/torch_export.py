"""torch.export's `.pt2` files: a program, and a compiled AOTInductor package."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, one_line
from .backend import KEY, Backend, ExportInfo, HalfPrecision, Profile, Request, Runner, quiet
from .pytorch import profile_in_torch

__all__ = ["AOTInductor", "TorchExport"]


def _exported(model: nn.Module, request: Request) -> torch.export.ExportedProgram:
    if request.precision != "fp32":
        model = HalfPrecision(model, request.precision)
    with torch.no_grad():
        return torch.export.export(
            model.eval(), (request.example,), dynamic_shapes=request.dynamic_shapes(), strict=False
        )


def _is_package(path: Path) -> bool:
    """Whether a .pt2 file holds compiled code, not a program."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any("data/aotinductor/" in name for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _runner(call: Callable[[Tensor], Tensor], text: str | None) -> tuple[Runner, ExportInfo | None]:
    info = ExportInfo.from_json(text) if text else None

    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return call(images.contiguous())  # compiled code takes no other strides

    return Runner(run, info.precision if info else ""), info


class TorchExport(Backend):
    """A program of torch.export, run by PyTorch on the CPU."""

    name = "torch"
    title = "torch.export"
    suffix = ".pt2"
    precisions = ("fp32", "fp16", "bf16")

    def owns(self, path: Path) -> bool:
        """Whether the file is a .pt2 without compiled code."""
        return super().owns(path) and not _is_package(path)

    def write(self, model: nn.Module, path: Path, request: Request) -> None:
        """Write the program."""
        torch.export.save(_exported(model, request), path, extra_files={KEY: request.info.to_json()})

    def load(self, path: Path, threads: int | None = None) -> tuple[Runner, ExportInfo | None]:
        """Load a program."""
        extra: dict[str, Any] = {KEY: ""}
        try:
            with quiet():  # it logs the traceback of what it raises
                program = torch.export.load(path, extra_files=extra).module()
        except Exception as error:  # whatever may be wrong with such an archive
            raise InputError(f"{path}: torch cannot load it ({one_line(error)})") from error
        return _runner(program, extra[KEY])

    def profile(self, model: nn.Module, request: Request, threads: int | None = None, calls: int = 20) -> Profile:
        """Time by operator, from PyTorch's profiler."""
        return profile_in_torch(self.prepare(model, request), request, calls)


class AOTInductor(TorchExport):
    """Code that torch compiled for this processor; a file of it runs code, so load only those that you trust."""

    name = "aotinductor"
    title = "AOTInductor"

    def owns(self, path: Path) -> bool:
        """Whether the file is a .pt2 with compiled code."""
        return path.suffix == self.suffix and _is_package(path)

    def write(self, model: nn.Module, path: Path, request: Request) -> None:
        """Compile the network and write the package; needs a C++ compiler."""
        from torch._inductor import aoti_compile_and_package

        program = _exported(model, request)
        options = {"aot_inductor.metadata": {KEY: request.info.to_json()}}
        try:
            with torch.no_grad():
                aoti_compile_and_package(program, package_path=str(path), inductor_configs=options)
        except Exception as error:  # the compiler's own, for example if there is none
            raise InputError(
                f"{path.name}: torch could not compile the network ({one_line(error)}); "
                f"backend {self.name} needs a C++ compiler"
            ) from error

    def load(self, path: Path, threads: int | None = None) -> tuple[Runner, ExportInfo | None]:
        """Load a package."""
        from torch._inductor import aoti_load_package

        try:
            package = aoti_load_package(str(path))
        except Exception as error:
            raise InputError(f"{path}: torch cannot load it ({one_line(error)})") from error
        return _runner(package, package.get_metadata().get(KEY))
