"""The parser: commands, typed options, YAML files, and one sentence for what does not fit."""

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from jsonargparse._formatters import DefaultHelpFormatter

from .. import __version__
from ..errors import InputError, nearest
from ..train.recipes import recipe_file
from . import bench, data, evaluate, export, models, predict, runs, train

__all__ = ["build_parser", "parse"]

COMMANDS = {
    "models": models,
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "export": export,
    "bench": bench,
    "runs": runs,
    "data": data,
}


class _Formatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of the examples."""


def build_parser() -> ArgumentParser:
    """The parser of all commands."""
    parser = ArgumentParser(
        prog="patnet",
        description="PATNet: train, evaluate and use a fast vision backbone.",
        epilog="Start with:\n"
        "  patnet models --all\n"
        "  patnet train --data elpv --out runs/first --size 96 --epochs 12\n"
        "  patnet evaluate runs/first\n"
        "  patnet predict runs/first photo.jpg\n"
        "  patnet export runs/first --out first.onnx\n"
        "  patnet runs runs/\n\n"
        "patnet COMMAND --help shows the options of a command, with examples.",
        formatter_class=_Formatter,
        exit_on_error=False,
        version=__version__,
    )
    commands = parser.add_subcommands(dest="command", title="commands")
    for name, module in COMMANDS.items():
        sub = ArgumentParser(
            description=module.DESCRIPTION, epilog=module.EPILOG, formatter_class=_Formatter, exit_on_error=False
        )
        sub.add_argument("--config", action="config", help="YAML file with options; those on the command line win.")
        module.add_arguments(sub)
        commands.add_subcommand(name, sub, help=module.DESCRIPTION.partition(". ")[0].rstrip("."))
    return parser


def parse(parser: ArgumentParser, argv: list[str]) -> tuple[Callable[..., int], dict[str, Any]]:
    """The command that `argv` names, and its options.

    Raises:
        InputError: In one sentence, with the nearest name where an option or command is unknown.
    """
    argv = [_underscored(word) for word in argv]
    if argv[:1] == ["train"]:
        argv = _with_recipe(argv)
        if "--resume" in argv:
            _take_over_run(parser, argv)
    try:
        parsed = parser.parse_args(argv)
    except argparse.ArgumentError as error:
        raise InputError(_sentence(parser, argv, str(error))) from error
    options = parsed[parsed.command]
    options = options.as_dict() if isinstance(options, Namespace) else dict(options)
    options.pop("config", None)
    return COMMANDS[parsed.command].run, options


def _underscored(word: str) -> str:
    """`--batch-size=8` as `--batch_size=8`: both spellings of an option are understood."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _subparsers(parser: ArgumentParser) -> dict[str, ArgumentParser]:
    action = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return dict(action._name_parser_map)


def _with_recipe(argv: list[str]) -> list[str]:
    """`argv` with the file of `--recipe` as the first configuration, so that all other options win over it."""
    finder = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    finder.add_argument("--recipe")
    try:
        found, others = finder.parse_known_args(argv[1:])
    except argparse.ArgumentError:
        return argv
    return argv if found.recipe is None else [argv[0], "--config", str(recipe_file(found.recipe)), *others]


def _take_over_run(parser: ArgumentParser, argv: Sequence[str]) -> None:
    """Make the options of the run in `--out` the defaults, so that `--resume` needs nothing else."""
    finder = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    finder.add_argument("--out")
    try:
        out = finder.parse_known_args(list(argv[1:]))[0].out
    except argparse.ArgumentError:
        return
    if out is None:
        raise InputError("--resume: give --out, the folder of the run to go on with")
    config = asdict(train.RunFolder(out).read_config())
    _subparsers(parser)["train"].set_defaults({**config, "out": out})


# Option, type and value in jsonargparse's message about a value of the wrong type.
ILL_TYPED = re.compile(
    r"""parser\ key\ "(?:\w+\.)?(\w+)"(?:\ element\ \d+)?:\ (.*?)
        (?:\.\ Got\ value:\ |\ Given\ value\ type:\ .*\ Given\ value:\ )(.*)$""",
    re.IGNORECASE | re.VERBOSE,
)
# What it calls a type, and what a person does.
TYPES = {
    r"<class 'float'>": "a number",
    r"<class 'int'>": "a whole number",
    r"<class 'bool'>": "true or false",
    r"<class 'str'>": "a word",
    r"<class 'dict'>|typing\.dict\[.*?\]|dict\[.*?\]": "a mapping of names to values",
    r"<class 'NoneType'>": "null",
    r"typing\.Literal\[(.*?)\]": "one of {}",
}


def _say_types(expected: str) -> str:
    """The types in a message of the parser, in words."""
    found: list[str] = []
    for subtype in re.findall(r"<class '\w+'>|typing\.\w+\[.*?\]|\w+\[.*?\]", expected):
        for pattern, words in TYPES.items():
            match = re.fullmatch(pattern, subtype)
            if match:
                literals = [item.strip().strip("'") for item in match[1].split(",")] if match.groups() else []
                said = literals[0] if len(literals) == 1 else words.format(", ".join(literals))
                if said not in found:
                    found.append(said)
    return " or ".join(found) or expected


def _sentence(parser: ArgumentParser, argv: Sequence[str], message: str) -> str:
    """An error of the parser as one sentence."""
    message = " ".join(message.split())
    subparsers = _subparsers(parser)
    command = argv[0] if argv else ""
    lowered = message.lower()
    if not argv or command.startswith("-"):
        if "unrecognized" not in lowered:
            return f"give a command: {', '.join(subparsers)}; patnet --help says more"
    elif command not in subparsers:
        return f"no command {command!r}{nearest(command, subparsers)}; there are {', '.join(subparsers)}"
    known = sorted({o for a in subparsers.get(command, parser)._actions for o in a.option_strings if o[:2] == "--"})
    missing = re.search(r"required: \w+\.(\w+)", message)
    if missing:
        option = f"--{missing[1]}" if f"--{missing[1]}" in known else missing[1].upper()
        return f"give {option} too; patnet {command} --help says what it is"
    if "unrecognized arguments:" in lowered:
        unknown = message.split(":", 1)[1].split()[0].partition("=")[0]
        if unknown.startswith("-"):
            return f"no option {unknown}{nearest(unknown, known)}; patnet {command} --help lists them"
        return f"{unknown!r} is one word too many; patnet {command} --help shows what goes where"
    foreign = re.search(r"does not accept (?:option|key)s? '?([\w.]+)", message)
    if foreign:
        hint = nearest(foreign[1], [option[2:] for option in known])
        return f"the configuration sets {foreign[1]!r}, which is no option{hint}; patnet {command} --help lists them"
    ill_typed = ILL_TYPED.search(message)
    if ill_typed:
        option, expected, value = ill_typed.groups()
        return f"--{option} {value.strip()}: must be {_say_types(expected)}"
    if "parsing config" in lowered:
        message = f"--config: not a YAML file of options ({message.partition(': ')[2]})"
    return message.removeprefix("error: ").rstrip(".") + f"; patnet {command} --help says what fits"
