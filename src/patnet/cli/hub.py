"""`patnet hub`: a run for the Hugging Face Hub, with a model card."""

import json as jsonlib
import sys
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser
from rich.console import Console

from ..errors import InputError
from ..hub import push_to_hub, write_hub_folder

DESCRIPTION = "Write a run as a directory for the Hugging Face Hub, with a model card, and upload it."
EPILOG = """Examples:
  patnet hub runs/first --out first                     weights, config.json and README.md, to look at
  patnet hub first --push OWNER/NAME                    uploads that directory as it is, with what you changed in it
  patnet hub runs/first --push OWNER/NAME --license cc-by-nc-sa-4.0 --private
  patnet predict hf-hub:OWNER/NAME photo.jpg            patnet's commands, timm and transformers take it from there

The card holds the figures of patnet evaluate for these very weights, the confusion matrix, the curves and the options
of the training. Uploading takes a login once: hf auth login. docs/hub.md shows the use with timm and transformers."""


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("run", type=str, help="Run folder, any checkpoint, or a directory that --out wrote before.")
    parser.add_argument("--out", type=str | None, default=None, help="The directory, new or empty.")
    parser.add_argument("--push", type=str | None, default=None, help="Upload into this repository, OWNER/NAME.")
    parser.add_argument("--private", action="store_true", help="Make the repository private, if it is new.")
    parser.add_argument("--create_pr", action="store_true", help="Upload as a pull request.")
    parser.add_argument("--which", type=Literal["best", "last"], default="best", help="Weights of the run.")
    parser.add_argument(
        "--license", type=str | None, default=None, help="Of the weights, as the Hub writes it, such as apache-2.0."
    )
    parser.add_argument(
        "--grey", action="store_true", help="Leave a network for grey pictures so; else it is made to take RGB too."
    )
    parser.add_argument("--json", action="store_true", help="Print JSON.")


def run(
    *,
    run: str,
    out: str | None,
    push: str | None,
    private: bool,
    create_pr: bool,
    which: str,
    license: str | None,
    grey: bool,
    json: bool,
) -> int:
    """Write, upload, and print where it is."""
    if out is None and push is None:
        raise InputError("give --out, the directory to write, or --push, the repository to upload into")
    if push is None and (private or create_pr):
        raise InputError("--private and --create_pr are for --push, so give that too")
    source, address = run, None
    options: dict[str, Any] = {"which": which, "license": license, "grey": grey}
    if out is not None:
        for sentence in write_hub_folder(run, out, repo_id=push, **options):
            print(f"patnet: {sentence}; patnet evaluate measures these", file=sys.stderr)
        source, options = out, {}
    if push is not None:
        with Console(stderr=True).status(f"uploading to {push}"):
            address = push_to_hub(source, push, private=private, create_pr=create_pr, **options)
    files = sorted(file.name for file in Path(out).iterdir()) if out is not None else []
    if json:
        print(jsonlib.dumps({"out": out, "files": files, "url": address}, indent=2))
        return 0
    for name in files:
        print(Path(str(out)) / name)
    if address:
        print(address)
    return 0
