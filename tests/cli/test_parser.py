import sys
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given as given_values
from hypothesis import settings
from hypothesis import strategies as st

from patnet import InputError
from patnet.cli import main, parser
from patnet.cli.parser import COMMANDS, Command
from patnet.train.config import PositiveInt, Probability


@dataclass(kw_only=True)
class Config:
    """Options.

    Args:
        data: Data set,
            by name.
        lr: Learning rate.
        scale: Two numbers.
        batch_size: Images.
        model_kwargs: Arguments of the model.
        strict: Whether to stop.
        prob: A probability, in %.
    """

    data: str
    lr: float = 1e-3
    scale: tuple[float, float] = (0.35, 1.0)
    batch_size: PositiveInt | Literal["auto"] = 32
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    strict: bool = True
    prob: Probability | None = None


def shared(loaded: object, *, top: PositiveInt = 5, console: object = None):
    """Shared with the library.

    Args:
        top: Number of classes.
        console: No option.
    """
    return top


def run(
    config: Config,
    images: list[str],
    given: frozenset[str],
    *,
    tta: Literal[1, 2] = 1,
    sizes: list[int] | None = None,
    plan: bool = False,
    **options: Any,
) -> int:
    """Run.

    Args:
        images: Images.
        tta: Views.
    """
    run.seen = {**vars(config), "images": images, "given": given, "tta": tta, "sizes": sizes, "plan": plan, **options}
    shared(None, console=None, **options)
    return 0


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A command `toy` of the command line; gives what its `run` got for some words."""
    module = ModuleType("toy")
    vars(module).update(SUMMARY="A toy.", EXAMPLES="Examples:\n  patnet toy x", EXTRA=("train", ("rich",)), run=run)
    vars(module).update(POSITIONAL={"images": "*"}, CONFIG=Config, RECIPES={"fast": tmp_path / "fast.yaml"})
    module.NOT_REQUIRED = {"plan": ("data",)}
    (tmp_path / "fast.yaml").write_text("lr: 1\nprob: 0.5\n")
    monkeypatch.setattr(parser, "COMMANDS", (*COMMANDS, "toy"))
    monkeypatch.setattr(parser, "_literals", lambda name: vars(module))
    monkeypatch.setitem(sys.modules, "patnet.cli.toy", module)
    monkeypatch.chdir(tmp_path)

    def call(*words):
        assert main(["toy", *words]) == 0
        return run.seen

    return call


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--data d", {"data": "d", "lr": 1e-3, "strict": True, "top": 5, "images": [], "given": {"data"}}),
        ("--data=d x --tta 2 y", {"tta": 2, "images": ["x", "y"]}),
        ("--data d --no-strict --plan", {"strict": False, "plan": True}),
        ("--data d --batch-size auto --scale 0.1 1", {"batch_size": "auto", "scale": (0.1, 1.0)}),
        ("--data d --batch-size 8 --sizes 1 2 -- x", {"batch_size": 8, "sizes": [1, 2], "images": ["x"]}),
        ("--data d --model-kwargs.a 0.5 --model-kwargs.b none", {"model_kwargs": {"a": 0.5, "b": "none"}}),
        ("--data d --config a.yaml --model-kwargs.b 2", {"model_kwargs": {"a": 1, "b": 2}, "lr": 0.01}),
        ("--config a.yaml --data d --recipe fast --prob 1", {"lr": 0.01, "prob": 1.0}),
        ("--data d --config a.yaml --config fast.yaml --lr 3e-4", {"lr": 3e-4, "prob": 0.5}),
        ("--plan", {"data": "", "given": {"plan"}}),
    ],
)
def test_options_reach_the_command(toy, words, expected):
    Path("a.yaml").write_text("lr: 1e-2\nmodel_kwargs: {a: 1}\n")
    seen = toy(*words.split())
    assert {name: seen[name] for name in expected} == expected
    assert type(seen["batch_size"]) in (int, str)  # without the range of the option's type


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "give --data too"),
        ("--data d --lrr 1", "no option --lrr (did you mean '--lr'?)"),
        ("--data d --modle-kwargs.x 1", "did you mean '--model-kwargs'"),
        ("--data d -x", "no option -x"),
        ("--data d --lr", "--lr: expected one argument"),
        ("--data d --lr fast", "--lr fast: must be a number"),
        ("--data d --lr .inf", "--lr inf: must be finite"),
        ("--data d --tta 3", "--tta 3: must be"),
        ("--data d --top 0", "--top 0: must be an integer above 0"),
        ("--data d --prob 2", "--prob 2: must be a number in [0, 1] or null"),
        ("--data d --scale 1", "--scale: expected 2 arguments"),
        ("--data d --strict=3", "--strict"),
        ("--data d --model-kwargs 3", "must be a mapping of names to values"),
        ("--data d --config none.yaml", "none.yaml: not a YAML file of options"),
        ("--data d --recipe fats", "--recipe fats: neither a recipe (did you mean 'fast'?)"),
        ("lrr: 3", "sets 'lrr', which is no option (did you mean 'lr'?)"),
        ("images: [x]", "sets 'images', which is no option"),
        ("lr: fast", "--lr fast: must be a number"),
        ("lr: null", "--lr: null is no value of it"),
        ("prob: much", "--prob much: must be a number in [0, 1] or null"),
        ("lr: [", "not a YAML file of options"),
        ("- lr", "written as 'name: value'"),
        ("lr: 2025-13-45", "not a YAML file of options"),
    ],
)
def test_a_wrong_option_is_named_on_the_command_line_and_in_a_file(toy, words, message, capsys):
    if words and not words.startswith("--"):
        Path("options.yaml").write_text(words)
        words = "--data d --config options.yaml"
    assert main(["toy", *words.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("patnet: ")
    assert error.count("\n") == 1
    assert message in error


OPTIONS = st.fixed_dictionaries(
    {
        "data": st.text(st.characters(codec="utf-8", exclude_characters="\x00")).map("d{}".format),
    },
    optional={
        "lr": st.floats(allow_nan=False, allow_infinity=False, min_value=0),
        "batch_size": st.integers(1) | st.just("auto"),
        "scale": st.tuples(st.floats(0, 1), st.floats(0, 1)),
        "sizes": st.lists(st.integers(0), min_size=1),
        "strict": st.booleans(),
        "tta": st.sampled_from([1, 2]),
    },
)


@cache
def command():
    module = ModuleType("toy")
    vars(module).update(
        SUMMARY="", EXAMPLES="", EXTRA=("train", ()), run=run, CONFIG=Config, POSITIONAL={"images": "*"}
    )
    return Command("toy", module)


@settings(max_examples=40)
@given_values(OPTIONS)
def test_words_and_yaml_say_the_same(options):
    """Random options have the same values from the command line and from a YAML file."""
    words = []
    for name, value in options.items():
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{name}")
        else:
            values = value if isinstance(value, tuple | list) else [value]
            words += [f"--{name.replace('_', '-')}", *map(str, values)]
    parsed = command().parse(words)
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "options.yaml")
        file.write_text(yaml.safe_dump({k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}))
        again = command().parse(["--config", str(file)])
    assert {**again, "given": None} == {**parsed, "given": None}


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_is_complete(name, capsys):
    """Each option has help, and the help has examples of the command."""
    try:
        command = Command(name)
    except InputError as error:
        pytest.skip(str(error))
    assert not [option.name for option in command.options.values() if not option.help]
    with pytest.raises(SystemExit) as left:
        main([*name.split(), "--help"])
    assert left.value.code == 0
    help_text = capsys.readouterr().out
    assert command.module.SUMMARY[:40] in " ".join(help_text.split())
    assert help_text.count(f"  patnet {name}") >= 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "give a command: models, train"),
        ("trian", "no command 'trian' (did you mean 'train'?)"),
        ("detect", "detect: give a command: train"),
        ("detect trian", "detect: no command 'trian' (did you mean 'train'?)"),
        ("models --josn", "did you mean '--json'"),
        ("models everything", "unexpected argument 'everything'"),
        ("evaluate", "RUN"),
    ],
)
def test_a_wrong_command_is_named(words, message, capsys):
    assert main(words.split()) == 2
    assert message in capsys.readouterr().err


def test_the_help_groups_options_by_topic(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    assert text.index("Data:") < text.index("--val-fraction") < text.index("Model and weights:")
    assert text.index("Optimisation:") < text.index("--patience")


def test_missing_packages_are_named(monkeypatch, capsys):
    monkeypatch.setattr("patnet.errors.find_spec", lambda name: None)
    assert main(["predict", "run", "image.png"]) == 2
    assert "pip install 'patnet[train]'" in capsys.readouterr().err
    monkeypatch.setattr("patnet.cli.models.VARIANTS", ("t0",))
    assert main(["models", "--json"]) == 0  # the base package has what it needs
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "  train  " in capsys.readouterr().out


def test_the_page_of_options_has_each_of_them(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "docs" / "scripts"))
    import options

    page = options.make_page()
    listed = " ".join(options.TOPICS.values()).split()
    for name in options.COMMANDS:
        command = options.Command(name)
        assert command.options.keys() - command.positional.keys() <= set(listed), "add the new option to a topic"
    assert options.PAGE.read_text(encoding="utf-8") == page, "run python docs/scripts/options.py"
