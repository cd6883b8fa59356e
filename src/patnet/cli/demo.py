"""`patnet demo`: a network in the browser."""

from pathlib import Path
from typing import Literal

from ..demo import serve
from ..errors import InputError
from ..loading import load
from ..train.config import PositiveFloat

SUMMARY = "Use a network in the browser: drop an image, see its classes, gates and attention."
EXAMPLES = """Examples:
  patnet demo                               the run of make demo
  patnet demo runs/first
  patnet demo runs/first --detector runs/panels
  patnet demo runs/first --port 8000
  patnet demo runs/first --host 0.0.0.0     for other machines too

Needs pip install 'patnet[demo]'. The page is served to this machine only, makes no request to other hosts, and keeps
no image. Ctrl-C ends it."""
EXTRA = ("demo", ("gradio", "jsonargparse", "matplotlib", "rich"))
POSITIONAL = {"run": "?"}

DEMO_RUN = Path("runs/demo")  # where `make demo` puts it


def run(
    run: str | None = None,
    *,
    checkpoint: Literal["best", "last"] = "best",
    detector: str | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    max_mb: PositiveFloat = 20.0,
    max_megapixels: PositiveFloat = 50.0,
) -> int:
    """Serve the page until Ctrl-C.

    Args:
        run: Run directory, checkpoint or exported file.
        checkpoint: Weights of the run.
        detector: Run directory of patnet detect train, for a tab of its own.
        host: Address to listen on.
        port: Port to listen on; default: the first free one from 7860.
        max_mb: Largest size of an upload, in MiB.
        max_megapixels: Largest number of pixels of an upload, in millions.
    """
    if run is None and not DEMO_RUN.exists():
        raise InputError(f"there is no {DEMO_RUN}; make demo creates it, or give a run: patnet demo RUN")
    name = run or str(DEMO_RUN)
    loaded = load(name, checkpoint=checkpoint)
    if loaded.task != "classification":
        raise InputError(f"{name}: holds a detector; give it as --detector, and a classifier as RUN")
    tab = None
    if detector is not None:
        from ..detection import load_detector

        tab = (load_detector(detector), detector)
    serve(loaded, name, detector=tab, host=host, port=port, max_mb=max_mb, max_megapixels=max_megapixels)
    return 0
