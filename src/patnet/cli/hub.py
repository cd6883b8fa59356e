"""`patnet hub`: a network for the Hugging Face Hub, with a model card."""

import json as jsonlib
import sys
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape

from ..errors import InputError
from ..hub import is_hub_directory, push_to_hub, write_hub_directory
from ..loading import load

SUMMARY = "Write a run as a directory for the Hugging Face Hub, with a model card, and upload it."
EXAMPLES = """Examples:
  patnet hub runs/first --out first                     weights, config.json and README.md, to look at
  patnet hub first --push OWNER/NAME                    uploads that directory as it is, with your changes to it
  patnet hub runs/first --push OWNER/NAME --license cc-by-nc-sa-4.0 --private
  patnet predict hf-hub:OWNER/NAME image.jpg            patnet's commands, timm and transformers load it from there

The card has the metrics of patnet evaluate for these very weights, the confusion matrix, the curves and the options of
the training. Uploading needs a login once: hf auth login. docs/hub.md shows the use with timm and transformers."""
EXTRA = ("train", ("jsonargparse", "jinja2", "rich"))
POSITIONAL = {"run": None}


def run(
    run: str,
    *,
    out: str | None = None,
    push: str | None = None,
    private: bool = False,
    create_pr: bool = False,
    checkpoint: Literal["best", "last"] = "best",
    license: str | None = None,
    grey: bool = False,
    json: bool = False,
) -> int:
    """Write, upload, and print where it is.

    Args:
        run: Run directory, checkpoint, or a directory that --out wrote.
        out: Directory to write, new or empty.
        push: Repository to upload into, OWNER/NAME.
        private: Make the repository private, if it is new.
        create_pr: Upload as a pull request.
        checkpoint: Weights of the run.
        license: Licence of the weights, an identifier of the Hub such as apache-2.0.
        grey: Keep a network for grey images as it is; otherwise it is converted to take RGB.
        json: Print JSON.
    """
    if out is None and push is None:
        raise InputError("give --out, the directory to write, or --push, the repository to upload into")
    if push is None and (private or create_pr):
        raise InputError("--private and --create-pr need --push, the repository to upload into")
    source: Any = run
    if out is not None or not is_hub_directory(Path(run)):
        source = load(run, checkpoint=checkpoint)
    options: dict[str, Any] = {"license": license, "grey": grey}
    files, url = [], None
    if out is not None:
        for message in write_hub_directory(source, out, repo_id=push, **options):
            print(f"patnet: {message}; patnet evaluate measures these weights", file=sys.stderr)
        source, options, files = out, {}, sorted(file.name for file in Path(out).iterdir())
    if push is not None:
        with Console(stderr=True).status(escape(f"uploading to {push}")):
            url = push_to_hub(source, push, private=private, create_pr=create_pr, **options)
    if json:
        print(jsonlib.dumps({"out": out, "files": files, "url": url}, indent=2))
    else:
        print(*(Path(str(out)) / name for name in files), *filter(None, [url]), sep="\n")
    return 0
