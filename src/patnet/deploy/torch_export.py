"""torch.export's `.pt2`, as a program and as a compiled AOTInductor package."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .format import Format, InHalf, Request, dynamic_shapes, quietly
from .info import KEY, ExportInfo

__all__ = ["AOTINDUCTOR", "PROGRAM", "is_package"]


def _program(model: nn.Module, request: Request) -> torch.export.ExportedProgram:
    if request.info.precision == "fp16":
        model = InHalf(model)
    shapes = dynamic_shapes(request.info.batch is None, request.info.size is None)
    with torch.no_grad():
        return torch.export.export(model.eval(), (request.example,), dynamic_shapes=shapes, strict=False)


def _write_program(model: nn.Module, path: Path, request: Request) -> None:
    torch.export.save(_program(model, request), path, extra_files={KEY: request.info.to_json()})


def _load_program(path: Path, threads: int | None) -> tuple[Callable[[Tensor], Tensor], ExportInfo | None]:
    extra: dict[str, Any] = {KEY: ""}
    try:
        with quietly("torch.export"):  # it logs the traceback of what it raises
            program = torch.export.load(path, extra_files=extra).module()
    except Exception as error:  # anything may be wrong with such an archive
        raise InputError(f"{path}: torch cannot load it ({' '.join(str(error).split())[:200]})") from error

    def run(pictures: Tensor) -> Tensor:
        with torch.inference_mode():
            return program(pictures)

    return run, ExportInfo.from_json(extra[KEY]) if extra[KEY] else None


def _write_package(model: nn.Module, path: Path, request: Request) -> None:
    from torch._inductor import aoti_compile_and_package

    program = _program(model, request)
    options = {"aot_inductor.metadata": {KEY: request.info.to_json()}}
    try:
        with torch.no_grad():
            aoti_compile_and_package(program, package_path=str(path), inductor_configs=options)
    except Exception as error:  # the compiler's own, a missing one's among them
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise InputError(
            f"{path.name}: torch could not compile the network ({reason}); format aotinductor needs a C++ compiler"
        ) from error


def _load_package(path: Path, threads: int | None) -> tuple[Callable[[Tensor], Tensor], ExportInfo | None]:
    from torch._inductor import aoti_load_package

    try:
        package = aoti_load_package(str(path))
    except Exception as error:
        raise InputError(f"{path}: torch cannot load it ({' '.join(str(error).split())[:200]})") from error
    text = package.get_metadata().get(KEY)

    def run(pictures: Tensor) -> Tensor:
        with torch.inference_mode():
            return package(pictures)

    return run, ExportInfo.from_json(text) if text else None


def is_package(path: Path) -> bool:
    """Whether a `.pt2` holds compiled code, not a program."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any("data/aotinductor/" in name for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


PROGRAM = Format(".pt2", ("fp32", "fp16"), (), "", _write_program, _load_program)
AOTINDUCTOR = Format(".pt2", ("fp32", "fp16"), (), "", _write_package, _load_package)
