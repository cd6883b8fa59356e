"""The parser: commands, typed options, YAML files, and one sentence for what does not fit."""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace
from jsonargparse._formatters import DefaultHelpFormatter

from .. import __version__
from ..errors import InputError, nearest

if TYPE_CHECKING:
    from ..train.config import RunConfig

__all__ = ["build_parser", "parse"]

# Each a module of this package, imported where it is needed alone: all together take seconds.
COMMANDS = (
    "models",
    "train",
    "evaluate",
    "predict",
    "inspect",
    "export",
    "bench",
    "runs",
    "data",
    "detect",
    "experiment",
    "hub",
    "demo",
)


def _command(name: str) -> ModuleType:
    return import_module(f".{name}", __package__)


class _Formatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of the examples."""


def build_parser(command: str | None = None) -> ArgumentParser:
    """The parser of one command, or of all if it is None or none of them."""
    parser = ArgumentParser(
        prog="patnet",
        description="PATNet: train, evaluate and use a fast vision backbone.",
        epilog="Start with:\n"
        "  patnet models --all\n"
        "  patnet train --data elpv --out runs/first --size 96 --epochs 12\n"
        "  patnet evaluate runs/first\n"
        "  patnet predict runs/first photo.jpg\n"
        "  patnet inspect runs/first photo.jpg --out inside\n"
        "  patnet demo runs/first\n"
        "  patnet export runs/first --out first.onnx\n"
        "  patnet hub runs/first --out first\n"
        "  patnet runs runs/\n\n"
        "patnet COMMAND --help shows the options of a command, with examples.",
        formatter_class=_Formatter,
        exit_on_error=False,
        version=__version__,
    )
    names = [command] if command in COMMANDS else COMMANDS
    _add_commands(parser, "command", {name: _command(name) for name in names})
    return parser


def _add_commands(parser: ArgumentParser, dest: str, modules: Mapping[str, ModuleType]) -> None:
    """A subparser for each module, and below it for each of a group's actions."""
    commands = parser.add_subcommands(dest=dest, title=f"{dest}s")
    for name, module in modules.items():
        sub = ArgumentParser(
            description=module.DESCRIPTION, epilog=module.EPILOG, formatter_class=_Formatter, exit_on_error=False
        )
        if not hasattr(module, "ACTIONS"):
            sub.add_argument("--config", action="config", help="YAML file with options; those on the command line win.")
            module.add_arguments(sub)
        commands.add_subcommand(name, sub, help=module.DESCRIPTION.partition(". ")[0].rstrip("."))
        if hasattr(module, "ACTIONS"):
            _add_commands(sub, "action", module.ACTIONS)


def parse(parser: ArgumentParser, argv: list[str]) -> tuple[Callable[..., int], dict[str, Any]]:
    """The command that `argv` names, and its options.

    Raises:
        InputError: In one sentence, with the nearest name where an option or command is unknown.
    """
    argv = [_underscored(word) for word in argv]
    words, own = _named(parser, argv)
    module = _module_of(words)
    if hasattr(module, "CONFIG"):
        argv = [*words, *_with_recipe(argv[len(words) :], module.RECIPES)]
        if "--resume" in argv and "--resume" in own._option_string_actions:
            _take_over_run(own, argv[len(words) :], module.CONFIG)
    try:
        parsed = parser.parse_args(argv)
    except argparse.ArgumentError as error:
        raise InputError(_sentence(parser, argv, str(error))) from error
    options: Any = parsed
    for word in words:
        options = options[word]
    options = options.as_dict() if isinstance(options, Namespace) else dict(options)
    options.pop("config", None)
    return module.run, options


def _underscored(word: str) -> str:
    """`--batch-size=8` as `--batch_size=8`: both spellings of an option are understood."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _subparsers(parser: ArgumentParser) -> dict[str, ArgumentParser]:
    """The parsers of the commands, or of a group's actions; none for one that has no such."""
    actions = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(actions[0]._name_parser_map) if actions else {}


def _named(parser: ArgumentParser, argv: Sequence[str]) -> tuple[list[str], ArgumentParser]:
    """The words at the front of `argv` that name a command, and its parser."""
    words: list[str] = []
    for word in argv:
        if word not in _subparsers(parser):
            break
        parser = _subparsers(parser)[word]
        words.append(word)
    return words, parser


def _module_of(words: Sequence[str]) -> Any:
    """The module of the command that these words name; None where they name none."""
    module: Any = None
    for word in words:
        module = _command(word) if module is None else module.ACTIONS[word]
    return module


def _with_recipe(options: list[str], recipes: Mapping[str, Path]) -> list[str]:
    """`options` with the file of `--recipe` as the first configuration, so that all other options win over it."""
    finder = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    finder.add_argument("--recipe")
    try:
        found, others = finder.parse_known_args(options)
    except argparse.ArgumentError:
        return options
    from ..train.recipes import recipe_file  # here, for commands without a configuration do without its imports

    return options if found.recipe is None else ["--config", str(recipe_file(found.recipe, recipes)), *others]


def _take_over_run(command: ArgumentParser, options: Sequence[str], kind: "type[RunConfig]") -> None:
    """Make the options of the run in `--out` the defaults, so that `--resume` needs nothing else."""
    finder = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    finder.add_argument("--out")
    try:
        out = finder.parse_known_args(list(options))[0].out
    except argparse.ArgumentError:
        return
    if out is None:
        raise InputError("--resume: give --out, the folder of the run to go on with")
    from ..train.run import RunFolder  # as above

    command.set_defaults({**asdict(RunFolder(out).read_config(kind)), "out": out})


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
    words, own = _named(parser, argv)
    command = " ".join(words)
    lowered = message.lower()
    further = _subparsers(own)
    if further:  # a command is still to be named
        word = argv[len(words)] if len(argv) > len(words) else ""
        where = f"{command}: " if command else ""
        if word and not word.startswith("-"):
            return f"{where}no command {word!r}{nearest(word, further)}; there are {', '.join(further)}"
        if "unrecognized" not in lowered:
            return f"{where}give a command: {', '.join(further)}; {' '.join(['patnet', *words])} --help says more"
    known = sorted({o for a in own._actions for o in a.option_strings if o[:2] == "--"})
    missing = re.search(r"required: [\w.]+\.(\w+)", message)
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
