"""`patnet demo`: the network in a browser."""

from typing import Any, Literal

from jsonargparse import ArgumentParser

from ..demo import serve

DESCRIPTION = "Use a network in a browser: drop a picture, see its classes and what led to them, compare speed."
EPILOG = """Examples:
  patnet demo                               the run that make demo made
  patnet demo runs/first
  patnet demo runs/first --detector runs/panels
  patnet demo runs/first --port 8000
  patnet demo runs/first --host 0.0.0.0     for whoever reaches this machine

Needs pip install "patnet[demo]". The page is served to this machine alone, takes nothing from the network, and keeps
no picture. Ctrl-C ends it."""


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("run", nargs="?", type=str | None, default=None, help="Run folder, or any checkpoint.")
    parser.add_argument("--which", type=Literal["best", "last"], default="best", help="Weights of the run.")
    parser.add_argument("--detector", type=str | None, default=None, help="Run of patnet detect train, to show too.")
    parser.add_argument("--host", type=str, default="127.0.0.1", help="Address to listen at.")
    parser.add_argument("--port", type=int, default=7860, help="Port, or the next free one; 0 for any.")
    parser.add_argument("--max_mb", type=float, default=20.0, help="Largest file that is taken, MiB.")
    parser.add_argument("--max_megapixels", type=float, default=50.0, help="Largest picture, million pixels.")


def run(**options: Any) -> int:
    """Serve the page until Ctrl-C."""
    serve(options.pop("run"), **options)
    return 0
