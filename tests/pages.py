"""The examples of README and documentation: found in the pages, parsed by the real parsers, run on small data."""

import contextlib
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.distributed.run import get_args_parser

from patnet.cli import main
from patnet.cli.parser import parse
from patnet.deploy import BACKENDS, suffixes
from patnet.detection.config import DetectConfig
from patnet.train import TrainConfig

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    str(page.relative_to(ROOT))
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
)

# Before a block that is not run with the others: `<!-- example: parsed only, because it installs -->`.
MARK = re.compile(r"<!-- example: (parsed only|slow)(?:, (because .+))? -->")
# Blocks in other languages are not checked.
LANGUAGES = {"kotlin", "python", "sh", "text", "yaml", "bibtex"}

TINY = "--epochs 1 --batch-size 8 --workers 0 --accelerator cpu"
# Options that make a command quick, appended to its own.
SHORTER = {
    "train": f"{TINY} --img-size 64 --val-fraction 0.25 --max-unreadable 1 --model-kwargs.depths [1,1,1,1]",
    "train --plan": f"{TINY} --plan-seconds 1",
    "evaluate": "--workers 0 --accelerator cpu",
    "predict": "--accelerator cpu",
    "export": "--check-images 4",
    "export int8": "--check-images 4 --calibration-images 8",
    "detect train": f"{TINY} --batch-size 2 --val-fraction 0.5 --min-size 64 --max-size 64 --width 16 "
    "--detector-kwargs.rpn_post_nms_top_n_train 20 --backbone-kwargs.depths [1,1,1,1]",
    "detect evaluate": "--workers 0 --accelerator cpu",
    "detect predict": "--accelerator cpu",
    "detect export": "--check-images 1",
}


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
    """The blocks of a page, in order."""
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
    """The commands of a shell script as words, and the file that each redirects its output to."""
    variables: dict[str, str] = {}
    for line in code.replace("\\\n", " ").splitlines():
        line = re.sub(r"\$(\w+)", lambda m: variables.get(m[1], "8"), line)  # unknown variables are numbers
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
    """Check an example with the parsers of the programs that it calls, without running it."""
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
            assert first in (".", "scontrol"), f"{where}: an unknown command"


def parse_requirement(requirement: str, where: str) -> None:
    """Check that the extras of `patnet[...]` or `.[...]` exist."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    match = re.fullmatch(r"(?:patnet|\.)(?:\[([\w,-]+)\])?", requirement)
    assert match, where
    assert {*(match[1] or "").split(",")} - {""} <= {*project["optional-dependencies"]}, where


def parse_patnet(argv: list[str], folder: Path) -> None:
    """Check a command line of patnet: its options, and the names among them."""
    if "--resume" in argv:  # takes the options of the run, and there is none here
        out = folder / "resumed"
        out.mkdir(exist_ok=True)
        config = DetectConfig if argv[0] == "detect" else TrainConfig
        (out / "config.yaml").write_text(config(data="images", out=str(out)).to_yaml())
        argv[argv.index("--out") + 1] = str(out)
    options: dict[str, Any] = parse(argv).keywords  # type: ignore[attr-defined]
    if argv[0] == "export":
        assert Path(options["out"]).suffix in suffixes(), options["out"]
        assert options["format"] is None or options["out"].endswith(str(BACKENDS[options["format"]].suffix)), options
    elif argv[0] == "bench":
        options["config"].resolved()
    elif "config" in options:
        options["config"].check()


class Reader:
    """Reads a page from top to bottom and does what it says, in the current folder.

    Args:
        slow: Run the examples marked as slow too.
    """

    def __init__(self, slow: bool) -> None:
        self.slow = slow
        self.names: dict[str, Any] = {"__name__": "__main__"}

    def run(self, example: Example) -> bool:
        """Run an example, unless its mark says otherwise; returns whether it was run."""
        if example.title and example.language != "sh":
            Path(example.title).write_text(example.code)
        if example.mark == "parsed only" or (example.mark == "slow" and not self.slow):
            return False
        if example.language == "python" and not example.title:
            padded = "\n" * example.line + example.code  # so that a traceback shows the line of the page
            exec(compile(padded, str(ROOT / example.page), "exec"), self.names)
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
        with contextlib.ExitStack() as stack:
            if out:
                stack.enter_context(contextlib.redirect_stdout(stack.enter_context(Path(out).open("w"))))
            code = main([*argv, *shortened(argv)])
        assert code == 0, f"{where}: exits with {code}"


def shortened(argv: list[str]) -> list[str]:
    """The options that make a command quick."""
    if "--resume" in argv:
        return []
    if "--plan" in argv:
        return shlex.split(SHORTER["train --plan"])
    if argv[0] == "export" and "int8" in argv:
        return shlex.split(SHORTER["export int8"])
    return shlex.split(SHORTER.get(" ".join(argv[:2])) or SHORTER.get(argv[0]) or "")
