"""The parser: commands, typed options, YAML files, and a one-line error message for what does not fit.

Each command is one module of this package and one entry in `COMMANDS`. The module holds

- `SUMMARY`, one sentence, and `EXAMPLES`, shown at the end of the help;
- `EXTRA`, the extra of the package that it needs, with packages of it, or None for a command of the base packages;
- `run`, which gives the exit code; its signature and docstring are the options of the command;
- `POSITIONAL`, the parameters of `run` that are positional, with their nargs (None, `"+"`, `"*"` or `"?"`);
- optionally `CONFIG`, a dataclass of further options, which `run` gets as `config`, with `RECIPES`, YAML files by name,
  and `NOT_REQUIRED`, by the name of a flag the options that may be left out with it and are then `""`.

A parameter `given` of `run` is no option: it gets the names of the options on the command line.
"""

import argparse
import ast
import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from .. import __version__
from ..errors import InputError, nearest, require
from .topics import TOPICS, topic_of

COMMANDS = (
    "models",
    "train",
    "evaluate",
    "predict",
    "inspect",
    "export",
    "bench",
    "runs",
    "runs compare",
    "data check",
    "detect train",
    "detect evaluate",
    "detect predict",
    "detect export",
    "hub",
    "demo",
)
START = """Start with:
  patnet models --all
  patnet train --data elpv --out runs/first --img-size 96 --epochs 12
  patnet evaluate runs/first
  patnet predict runs/first image.jpg
  patnet inspect runs/first image.jpg --out inside
  patnet demo runs/first
  patnet export runs/first --out first.onnx
  patnet hub runs/first --out first
  patnet runs runs/"""


@dataclass(frozen=True)
class Option:
    """An option or positional argument of a command; `kinds` are the types that the type `hint` is a union of."""

    name: str
    flag: str
    hint: Any
    kinds: tuple[Any, ...]
    help: str
    default: Any
    required: bool


def parse(words: Sequence[str]) -> Callable[[], int]:
    """What the words of a command line ask to run.

    Raises:
        InputError: If a word, option or value does not fit.
        SystemExit: With code 0 after `--help` and `--version`.
    """
    if words and words[0] == "--version":
        print(f"patnet {__version__}")
        raise SystemExit(0)
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in COMMANDS:
            command = Command(name)
            return partial(command.module.run, **command.parse(words[length:]))
    group = f"{words[0]} " if words and any(name.startswith(f"{words[0]} ") for name in COMMANDS) else ""
    rest = words[1:] if group else words
    below = [name.removeprefix(group) for name in COMMANDS if name.startswith(group)]
    if rest and rest[0] in ("-h", "--help"):
        print(_overview(group, below))
        raise SystemExit(0)
    where = f"{group.strip()}: " if group else ""
    below = list(dict.fromkeys(name.partition(" ")[0] for name in below))
    if rest:
        raise InputError(f"{where}no command {rest[0]!r}{nearest(rest[0], below)}; there are {', '.join(below)}")
    raise InputError(f"{where}give a command: {', '.join(below)}; patnet {group}--help says more")


def _overview(group: str, names: Sequence[str]) -> str:
    """The help of `patnet`, or of a group of commands."""
    lines = [f"usage: patnet {group}COMMAND [options]", ""]
    if not group:
        lines += ["PATNet: train, evaluate and use a fast vision backbone.", ""]
    lines += ["commands:", *(f"  {name:<17} {_literals(group + name)['SUMMARY']}" for name in names)]
    lines += ["", *([START, ""] if not group else [])]
    return "\n".join([*lines, f"patnet {group}COMMAND --help shows the options of a command, with examples."])


def _literals(name: str) -> dict[str, Any]:
    """The constants of a command's module, read without importing it: its packages may be missing, and take seconds."""
    file = Path(__file__).with_name(f"{name.replace(' ', '_')}.py")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {
        ast.unparse(node.targets[0]): ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("SUMMARY", "EXTRA")
    }


class _Words(argparse.ArgumentParser):
    """Splits the words of a command line into options; errors are raised, not printed."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; {self.prog} --help shows what goes where")


class Command:
    """One command: its module and its options.

    Args:
        name: One of `COMMANDS`, or how a script is called.
        script: A module that is no part of this package, such as `experiments/run.py`.

    Raises:
        InputError: If the packages that it needs are not installed.
    """

    def __init__(self, name: str, script: ModuleType | None = None) -> None:
        self.prog = f"patnet {name}" if script is None else name
        extra = _literals(name)["EXTRA"] if script is None else script.EXTRA
        if extra is not None:
            require(extra[1], extra[0], self.prog)
        self.module: ModuleType = script or import_module(f".{name.replace(' ', '_')}", __package__)
        self.config: Any = getattr(self.module, "CONFIG", None)
        self.positional: Mapping[str, str | None] = getattr(self.module, "POSITIONAL", {})
        self.typed: Any = None  # the parser that checks types
        if extra is None:  # a command of the base packages has flags alone, since jsonargparse is none of them
            found = [(name, bool, text, False, False) for name, text in self.module.HELP.items()]
        else:
            from jsonargparse import ArgumentParser

            self.typed = ArgumentParser(exit_on_error=False, add_help=False)
            if self.config is not None:
                self.typed.add_class_arguments(self.config, as_group=False)
            self.typed.add_function_arguments(self.module.run, as_group=False, skip={"config", "given"})
            found = [(a.dest, a._typehint, a.help or "", a.default, a.required) for a in self.typed._actions]
        self.options: dict[str, Option] = {}
        for name, hint, text, default, required in found:
            kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
            flag = "--" + name.replace("_", "-")
            self.options[name] = Option(name, flag, hint, kinds, " ".join(text.split()), default, required)

    def word_parser(self) -> argparse.ArgumentParser:
        """The parser of the words, which knows names and numbers of values; it prints the help."""
        forms = {None: "{}", "+": "{} ...", "*": "[{} ...]", "?": "[{}]"}
        arguments = [forms[nargs].format(name.upper()) for name, nargs in self.positional.items()]
        parser = _Words(
            prog=self.prog,
            usage=" ".join([self.prog, *arguments, "[options]"]),
            description=self.module.SUMMARY,
            epilog=self.module.EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
            exit_on_error=False,
        )
        used = {topic_of(name) for name in self.options.keys() - self.positional.keys()}
        groups = {topic: parser.add_argument_group(topic) for topic in TOPICS if topic in used}
        for option in self.options.values():
            if option.name in self.positional:
                nargs = self.positional[option.name]
                metavar, text = option.name.upper(), option.help.replace("%", "%%")
                parser.add_argument(option.name, nargs=nargs, metavar=metavar, help=text)
            else:
                groups[topic_of(option.name)].add_argument(option.flag, dest=option.name, **_keywords(option))
        if self.typed is not None:
            parser.add_argument("--config", action="append", help="YAML file of options; those given here win.")
            parser.add_argument("--print-config", action="store_true", help="Print all options as YAML and exit.")
        if hasattr(self.module, "RECIPES"):
            known = ", ".join(sorted(self.module.RECIPES))
            parser.add_argument("--recipe", help=f"{known}, or a YAML file; all other options win over it.")
        return parser

    def parse(self, words: Sequence[str]) -> dict[str, Any]:
        """The arguments of `run` that the words of a command line give.

        Raises:
            InputError: If a word, option or value does not fit.
        """
        given = self._split(words)
        if self.typed is None:
            return given
        files, recipe = given.pop("config", []), given.pop("recipe", None)
        print_config = given.pop("print_config", False)
        values = self._resumed(given) if self.config is not None and given.get("resume") else {}
        if recipe is not None:
            from ..train.recipes import recipe_file

            values |= self._read_yaml(recipe_file(recipe, self.module.RECIPES))
        for file in files:
            values |= self._read_yaml(Path(file))
        for flag, names in getattr(self.module, "NOT_REQUIRED", {}).items():
            values |= dict.fromkeys(set(names) - set(values), "") if given.get(flag) else {}
        options = self._check_types(_merge(values, given))
        if print_config:
            for name in self.positional:
                options.pop(name)
            print(self.typed.dump(options, skip_validation=True), end="")
            raise SystemExit(0)
        arguments = {name: _builtin(value) for name, value in options.as_dict().items()}
        if self.config is not None:
            arguments["config"] = self.config(**{f.name: arguments.pop(f.name) for f in fields(self.config)})
        if "given" in inspect.signature(self.module.run).parameters:
            arguments["given"] = frozenset(name.partition(".")[0] for name in given) - self.positional.keys()
        return arguments

    def _split(self, words: Sequence[str]) -> dict[str, Any]:
        """The values by name of option, as they stand on the command line."""
        parser = self.word_parser()
        nested = {word.partition("=")[0] for word in words if word.startswith("--") and "." in word.partition("=")[0]}
        for name in nested:  # --model-kwargs.partial_ratio 0.5
            option = self.options.get(name[2:].partition(".")[0].replace("-", "_"))
            if option is not None and dict in (option.hint, get_origin(option.hint)):
                parser.add_argument(name, dest=f"{option.name}.{name.partition('.')[2]}")
        try:
            found, others = parser.parse_known_intermixed_args(list(words))
        except argparse.ArgumentError as error:
            raise InputError(f"{error.argument_name}: {error.message}; {parser.prog} --help says what fits") from error
        if others:
            word = others[0].partition("=")[0]
            if not word.startswith("-"):
                raise InputError(f"unexpected argument {word!r}; {parser.prog} --help shows what goes where")
            hint = nearest(word, [flag for flag in parser._option_string_actions if flag.startswith("--")])
            raise InputError(f"no option {word}{hint}; {parser.prog} --help lists them")
        return {name: [] for name, nargs in self.positional.items() if nargs == "*"} | vars(found)

    def _resumed(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The options of the run in `--out`, so that `--resume` needs no other."""
        if "out" not in given:
            raise InputError("--resume: give --out, the directory of the run to resume")
        from ..train.run import RunDirectory

        return {**asdict(RunDirectory(given["out"]).read_config(self.config)), "out": given["out"]}

    def _read_yaml(self, file: Path) -> dict[str, Any]:
        import yaml

        try:
            values = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"{file}: not a YAML file of options ({reason})") from error
        if not isinstance(values, dict):
            raise InputError(f"{file}: not a YAML file of options, which are written as 'name: value'")
        known = [name for name in self.options if name not in self.positional]
        for name in values:
            if name not in known:
                hint = nearest(str(name), known)
                raise InputError(f"{file}: sets {str(name)!r}, which is no option{hint}; {self.prog} --help lists them")
        return values

    def _check_types(self, values: Mapping[str, Any]) -> Any:
        """All options, each of its type."""
        from ..train.config import check_option

        for option in self.options.values():
            if option.required and values.get(option.name) is None:
                raise InputError(f"give {option.flag} too; {self.prog} --help says what it is")
            if option.name in values and values[option.name] is None and NoneType not in option.kinds:
                raise InputError(f"{option.flag}: null is no value of it; leave it out")
        try:
            options = self.typed.parse_object(dict(values))
        except argparse.ArgumentError:
            for name, value in values.items():
                check_option(name, value, self.options[name].hint)
            raise
        for option in self.options.values():
            value = options[option.name]
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"{option.flag} {value}: must be finite")
        return options


def _keywords(option: Option) -> dict[str, Any]:
    """The arguments of `add_argument` for an option."""
    default = option.default
    values = map(str, default if isinstance(default, list | tuple) else [default])
    shown = not (default is None or default is False or default == {})
    remark = " (required)" if option.required else f" (default: {' '.join(values)})" if shown else ""
    keywords: dict[str, Any] = {"help": (option.help + remark).replace("%", "%%")}
    if bool in option.kinds:
        return keywords | {"action": argparse.BooleanOptionalAction}
    for kind in option.kinds:
        if get_origin(kind) is tuple:
            keywords["nargs"] = len(get_args(kind))
        elif get_origin(kind) is list:
            keywords["nargs"] = "+"
    choices = [str(choice) for kind in option.kinds for choice in get_args(kind) if get_origin(kind) is Literal]
    if choices and all(kind is NoneType or get_origin(kind) is Literal for kind in option.kinds):
        keywords["metavar"] = "{" + ",".join(choices) + "}"
    return keywords


def _builtin(value: Any) -> Any:
    """A number of a restricted type as Python's own, which YAML can be written of."""
    if isinstance(value, list | tuple):
        return type(value)(_builtin(item) for item in value)
    restricted = isinstance(value, int | float) and not isinstance(value, bool)
    return (int if isinstance(value, int) else float)(value) if restricted else value


def _merge(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with those of the command line in their place; a key of a mapping is set in the mapping."""
    merged = dict(values)
    for name, value in sorted(given.items()):  # a mapping before its keys
        head, dot, key = name.partition(".")
        if not dot:
            merged[name] = value
        elif isinstance(merged.get(head, {}), dict):
            merged[head] = {**merged.get(head, {}), key: value}
        else:
            raise InputError(f"--{head.replace('_', '-')}: give all its keys in one value, or one by one, not both")
    return merged


def refuse_idle(given: Collection[str], needs: Mapping[str, tuple[bool, Sequence[str]]]) -> None:
    """Refuse options that change nothing without others.

    Args:
        given: Names of the options on the command line.
        needs: By what is needed, such as `--out`, whether it is there, and names of the options that belong to it.

    Raises:
        InputError: If one of them is given without what it needs.
    """
    for other, (there, names) in needs.items():
        for name in names:
            if name in given and not there:
                raise InputError(f"--{name.replace('_', '-')}: belongs to {other}; give that too, or leave it out")
