"""Peak memory on the CPU: of a fresh process that does nothing else."""

import ctypes
import gc
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..deploy.runtimes import prepare
from .candidates import MEMORY_FORMATS, Candidate, Setting, build, calibration_pictures, channels_of
from .timing import use_threads

__all__ = ["peak_of"]

STATUS, REFERENCES = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _mib(field: str) -> float:
    """A field of the process's status, in MiB."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def _tidy() -> None:
    """Give back to the system what is free."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def peak(candidate: Candidate, chunk: int, seed: int) -> float:
    """Peak resident memory in MiB while a candidate runs, beyond that of this process before it was built.

    To be called in a process that has done nothing else. What its runtime's own libraries take is left out, for
    they are loaded before; weights, maps and the runtime's plans are in it.
    """
    setting = candidate.setting
    options: dict[str, Any] = {
        "runtime": candidate.runtime,
        "precision": setting.precision,
        "threads": setting.threads,
    }
    small = torch.randn(1, 3, 32, 32)
    if setting.precision != "int8":
        prepare(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()).eval(), small, **options)(small)  # loads libraries
    calibration = None
    if setting.precision == "int8":
        channels = channels_of(build(candidate.model, candidate.form, seed=seed))
        calibration, _ = calibration_pictures(max(8, chunk), channels, setting.size, seed)
    with use_threads(setting.threads):
        _tidy()
        before = _mib("VmRSS")
        layout = MEMORY_FORMATS[candidate.memory_format]
        network = build(candidate.model, candidate.form, seed=seed).to(memory_format=layout)
        pictures = torch.randn(chunk, channels_of(network), setting.size, setting.size).contiguous(memory_format=layout)
        run = prepare(network, pictures, calibration=calibration, **options)
        del network
        run(pictures)
        _tidy()
        REFERENCES.write_text("5")  # the peak starts anew
        for _ in range(3):
            run(pictures)
        return _mib("VmHWM") - before


def peak_of(candidate: Candidate, chunk: int, seed: int) -> float | None:
    """`peak` in a fresh process; None where the system has no such figures, which is so outside Linux."""
    if not REFERENCES.exists():
        return None
    task = json.dumps({"candidate": asdict(candidate), "chunk": chunk, "seed": seed})
    done = subprocess.run([sys.executable, "-m", __name__, task], capture_output=True, text=True, check=False)
    return float(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    fields = {**given["candidate"], "setting": Setting(**given["candidate"]["setting"])}
    print(peak(Candidate(**fields), given["chunk"], given["seed"]))
