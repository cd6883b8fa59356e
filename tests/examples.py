"""The examples of the README and the site: found in the pages, parsed by the real parsers, run on small data."""

import contextlib
import re
import shlex
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import timm
from torch.distributed.run import get_args_parser

from patnet.benchmark.candidates import FORMS, PRECISIONS
from patnet.cli import main
from patnet.cli.data import OPTIONS
from patnet.cli.parser import COMMANDS, build_parser, parse
from patnet.deploy import FORMATS, RUNTIMES
from patnet.detection.config import DetectConfig
from patnet.experiments.catalogue import experiment
from patnet.train.config import TrainConfig

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    str(page.relative_to(ROOT))
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
)

# What stands before a block that is not run with the others, as in `<!-- example: parsed only, for it installs -->`.
MARK = re.compile(r"<!-- example: (parsed only|slow)(?:, (for .+))? -->")
# Blocks of other kinds are no examples; another name for a shell would pass by the tests.
LANGUAGES = {"python", "sh", "text", "yaml"}

TINY = "--epochs 1 --batch_size 8 --workers 0 --accelerator cpu"
# What makes a command short enough to be run here, added to its own options.
SHORTER = {
    "train": f"{TINY} --warmup_epochs 0 --size 64 --val_fraction 0.25 --max_unreadable 1 --model_args.depths [1,1,1,1]",
    "train --plan": f"{TINY} --warmup_epochs 0 --plan_seconds 1",
    "evaluate": "--workers 0 --accelerator cpu",
    "predict": "--accelerator cpu",
    "export": "--check_pictures 4 --calibration_pictures 8",
    "data elpv-panels": "--train 4 --test 2 --size 96 --cells 2",
    "detect train": f"{TINY} --batch_size 2 --val_fraction 0.5 --size 64 --max_size 64 --width 16 --warmup_steps 0 "
    "--detector_args.rpn_post_nms_top_n_train 20 --backbone_args.depths [1,1,1,1]",
    "detect evaluate": "--workers 0 --accelerator cpu",
    "detect predict": "--accelerator cpu",
    "detect export": "--check_pictures 1",
}
# Prints the same in any folder, so once is enough.
ONCE = {"models"}


@dataclass(frozen=True)
class Example:
    """A block of code in a page."""

    page: str
    line: int
    language: str
    title: str | None
    mark: str | None
    reason: str | None
    code: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def examples(page: str) -> list[Example]:
    """The blocks of a page, in their order."""
    found = []
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    start = None
    for number, line in enumerate(lines):
        if not line.lstrip().startswith("```"):
            continue
        if start is None:
            start = number
            continue
        language, _, info = lines[start].strip().removeprefix("```").partition(" ")
        mark = MARK.fullmatch(lines[start - 1].strip()) if start else None
        title = re.search(r'title="([^"]+)"', info)
        code = "\n".join(lines[start + 1 : number]) + "\n"
        found.append(Example(page, start + 1, language, title and title[1], mark and mark[1], mark and mark[2], code))
        start = None
    assert start is None, f"{page}:{start}: a block that does not end"
    return found


def commands(code: str) -> Iterator[tuple[list[str], str | None]]:
    """The commands of a shell script as words, and the file that each writes its output to."""
    variables: dict[str, str] = {}
    for line in code.replace("\\\n", " ").splitlines():
        line = re.sub(r"\$(\w+)", lambda m: variables.get(m[1], "8"), line)  # what is unknown stands for a number
        assigned = re.fullmatch(r'(\w+)="?([^"]*)"?', line.strip())
        if assigned:
            variables[assigned[1]] = assigned[2]
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word not in (";", "&&", "||", "|", "&"):
                words.append(word)
                continue
            while words and (words[0] in ("if", "then", "else", "fi", "do", "done") or re.match(r"\w+=", words[0])):
                words.pop(0)
            if words and words[0] != "[":
                out = words[words.index(">") + 1] if ">" in words else None
                yield (words[: words.index(">")] if out else words), out
            words = []


def parse_example(example: Example, folder: Path) -> None:
    """Check an example with the parsers of what it calls, without running it."""
    if example.language == "python":
        compile(example.code, str(example), "exec")
        return
    checked = subprocess.run(["bash", "-n"], input=example.code, capture_output=True, text=True)
    assert checked.returncode == 0, f"{example}: {checked.stderr}"
    titles = {other.title for other in examples(example.page)}
    for words, _ in commands(example.code):
        where = f"{example}: {shlex.join(words)}"
        first, rest = words[0], words[1:]
        if first == "torchrun":
            launched = get_args_parser().parse_args(rest)
            assert launched.module, where
            assert launched.training_script == "patnet", where
            parse_patnet(launched.training_script_args, folder)
        elif first == "srun":
            assert rest[0] == "patnet", where
            parse_patnet(rest[1:], folder)
        elif first == "patnet":
            parse_patnet(rest, folder)
        elif first == "make":
            targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
            assert {word for word in rest if "=" not in word} <= {*targets}, where
        elif first == ".venv/bin/pytest":
            assert all((ROOT / word).exists() for word in rest if word.startswith("tests")), where
        elif "pip" in words[:3]:
            parse_requirement(rest[-1], where)
        elif first == "sbatch":
            assert rest[0] in titles, where
        elif first in ("python", "python3"):
            assert rest[:2] == ["-m", "venv"] or rest[0] in titles or (ROOT / rest[0]).is_file(), where
        else:
            assert first in (".", "scontrol"), f"{where}: a command that is unknown here"


def parse_requirement(requirement: str, where: str) -> None:
    """Check that the extras of `patnet[...]` or `.[...]` exist."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    match = re.fullmatch(r"(?:patnet|\.)(?:\[([\w,-]+)\])?", requirement)
    assert match, where
    assert {*(match[1] or "").split(",")} - {""} <= {*project["optional-dependencies"]}, where


_PARSER: list[Any] = []


def parse_patnet(argv: list[str], folder: Path) -> None:
    """Check a command line of patnet: its options, and the names among them."""
    action = " ".join(argv[:2]) if argv[0] == "detect" else argv[0]
    kind: type[TrainConfig] | type[DetectConfig] = DetectConfig if action == "detect train" else TrainConfig
    if "--resume" in argv:  # takes its options over from the run, of which there is none here
        out = folder / "resumed"
        out.mkdir(exist_ok=True)
        (out / "config.yaml").write_text(kind(data="photos", out=str(out)).to_yaml())
        argv[argv.index("--out") + 1] = str(out)
        parser = build_parser()
    else:
        _PARSER[:] = _PARSER or [build_parser()]
        parser = _PARSER[0]
    _, options = parse(parser, argv)
    if action in ("train", "detect train"):
        kind(**{f.name: options[f.name] for f in fields(kind)}).check()
    elif action == "experiment" and options["experiment"] not in ("list", "report"):
        known = {c.name for c in experiment(options["experiment"]).configurations}
        assert {*options["only"]} <= known, options["only"]
    elif action == "export":
        assert options["out"].endswith(FORMATS[options["format"]].suffix), options["out"]
    elif action in ("bench", "detect bench"):
        assert {*options["runtimes"]} <= {*RUNTIMES}, options["runtimes"]
        assert {*options.get("forms", ())} <= {*FORMS}, options["forms"]
        given = [options["precision"]] if isinstance(options["precision"], str) else options["precision"]
        assert {*given} <= {*PRECISIONS}, given
        assert all(timm.is_model(name) or "/" in name for name in options.get("models", ())), options["models"]
    elif action == "data":
        assert options["action"][0] in OPTIONS, options["action"]


class Reader:
    """Reads a page from top to bottom and does what it says, in the current folder.

    Args:
        slow: Run those examples too that are marked as slow.
    """

    def __init__(self, slow: bool) -> None:
        self.slow = slow
        self.names: dict[str, Any] = {"__name__": "__main__"}
        self.done: set[tuple[str, ...]] = set()

    def run(self, example: Example) -> bool:
        """Run an example, unless it says that it is not run; whether it was."""
        if example.title and example.language != "sh":
            Path(example.title).write_text(example.code)
        if example.mark == "parsed only" or (example.mark == "slow" and not self.slow):
            return False
        if example.language == "python" and not example.title:
            padded = "\n" * example.line + example.code  # so that a traceback names the line of the page
            start = time.process_time()
            exec(compile(padded, str(ROOT / example.page), "exec"), self.names)
            print(f"{time.process_time() - start:5.1f} s of the processor  {example}")
        elif example.language == "sh":
            for words, out in commands(example.code):
                self.call(words, out, str(example))
        return True

    def call(self, words: list[str], out: str | None, where: str) -> None:
        """Run a command of a shell example."""
        where = f"{where}: {shlex.join(words)}"
        if words[0] == "python":
            subprocess.run([sys.executable, *words[1:]], check=True, timeout=120)
            return
        assert words[0] == "patnet", f"{where}: cannot be run here; mark the block as parsed only, and say why"
        argv = words[1:]
        if argv[0] in ONCE:
            if tuple(argv) in _DONE:
                return
            _DONE.add(tuple(argv))
        with contextlib.ExitStack() as stack:
            if out:
                stack.enter_context(contextlib.redirect_stdout(stack.enter_context(Path(out).open("w"))))
            start = time.process_time()
            code = main([*argv, *shortened(argv)])
        print(f"{time.process_time() - start:5.1f} s of the processor  {where}")
        assert code == 0, f"{where}: leaves with {code}"


_DONE: set[tuple[str, ...]] = set()


def shortened(argv: list[str]) -> list[str]:
    """What is added to a command line to make it short."""
    assert argv[0] in COMMANDS, argv
    if "--resume" in argv:
        return []
    if "--plan" in argv:
        return shlex.split(SHORTER["train --plan"])
    return shlex.split(SHORTER.get(argv[0]) or SHORTER.get(" ".join(argv[:2])) or "")
