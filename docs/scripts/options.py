"""Writes docs/reference/options.md: the options of all commands, grouped by topic, from the parser.

Run with `python docs/scripts/options.py`; `--check` only says whether the page is up to date.
"""

import sys
from pathlib import Path

from patnet.cli.parser import COMMANDS, Command, Option
from patnet.cli.topics import TOPICS, topic_of
from patnet.train.config import describe_type

PAGE = Path(__file__).parents[1] / "reference" / "options.md"

HEAD = """# Options

Options are written with hyphens on the command line (`--batch-size 64`), and with underscores in YAML files, which
`--config FILE.yaml` reads. Options on the command line win over those of `--config`, those over `--recipe`. A flag
`--x` has its opposite `--no-x`. `--print-config` prints all options as YAML. `patnet COMMAND --help` shows those of one
command.

This page is written by `python docs/scripts/options.py`.
"""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _row(option: Option, commands: list[str]) -> str:
    if option.required:
        default = "required"
    elif isinstance(option.default, bool):
        default = "on" if option.default else "off"
    else:
        values = option.default if isinstance(option.default, tuple | list) else [option.default]
        default = "" if option.default in (None, {}, (), []) else f"`{' '.join(map(str, values))}`"
    value = "" if option.hint is bool else describe_type(option.hint).removesuffix(" or null")
    return f"| `{option.flag}` | {_cell(value)} | {_cell(default)} | {', '.join(commands)} | {_cell(option.help)} |"


def make_page() -> str:
    """The page, in Markdown."""
    rows: dict[str, dict[tuple[str, str, str], tuple[Option, list[str]]]] = {topic: {} for topic in TOPICS}
    for name in COMMANDS:
        command = Command(name)
        for option in command.options.values():
            if option.name not in command.positional:
                key = (option.name, str(option.default), option.help)
                rows[topic_of(option.name)].setdefault(key, (option, []))[1].append(name)
    parts = [HEAD]
    for topic, options in rows.items():
        if options:
            lines = [_row(option, commands) for _, (option, commands) in sorted(options.items())]
            head = ["| option | value | default | commands | meaning |", "| --- | --- | --- | --- | --- |"]
            parts.append("\n".join([f"## {topic}\n", *head, *lines]) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    page = make_page()
    if "--check" in sys.argv:
        sys.exit(f"{PAGE} is out of date: run {sys.argv[0]}" if PAGE.read_text(encoding="utf-8") != page else 0)
    PAGE.write_text(page, encoding="utf-8")
