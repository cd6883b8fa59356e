"""Partial attention in language models: make the corpus, train the models, measure decoding, report, generate text."""

import json
import sys
import time
from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path
from timeit import timeit
from typing import Literal

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from language.corpus import Corpus, build_corpus, load
from language.decoding import measure
from language.gpt import GPT
from language.protocol import RATES, SEARCH_SEED, SIZES, Budget, Run, model_config, runs_of, search_runs
from language.report import publish
from language.training import load_model, measure_loss, read_results, save_model, steps, train_run
from pool import RESULTS, Job, finish, fix, missing

from patnet import InputError
from patnet.cli import main
from patnet.cli.parser import refuse_idle
from patnet.files import write_text
from patnet.train.config import PositiveFloat, PositiveInt

NAME = "experiments/language/run.py"
SUMMARY = __doc__
EXAMPLES = """examples:
  sh experiments/language/packages.sh                        the corpus, from packages with apt-get and npm
  python experiments/language/run.py corpus --train.mine texts/ --test.other more/    or from folders of your own
  python experiments/language/run.py train --processes 2     resumes: runs with results are not repeated
  python experiments/language/run.py train --sizes small 30m medium large --device cuda --processes 12
  python experiments/language/run.py decode                  speed and memory on one CPU thread
  python experiments/language/run.py report                  docs/language.md, at any time
  python experiments/language/run.py demo                    train for 3 minutes, and generate text
  python experiments/language/run.py generate --prompt "The kernel\""""
EXTRA = ("hub", ("jsonargparse", "matplotlib", "scipy", "tokenizers"))
POSITIONAL = {"command": None}
BUDGET = Budget()


def run(
    command: Literal["corpus", "train", "decode", "report", "demo", "generate"],
    *,
    train: dict[str, str] = {},  # noqa: B006
    test: dict[str, str] = {},  # noqa: B006
    out: str = "runs/language",
    results: str = "experiments/results/language",
    sizes: list[Literal["small", "medium", "large", "30m"]] = ["small"],  # noqa: B006
    device: Literal["cpu", "cuda"] = "cpu",
    processes: PositiveInt = 1,
    minutes: PositiveFloat = 3.0,
    configuration: str = "pat_sf-1-2",
    prompt: str = "The kernel",
    tokens: PositiveInt = 300,
    page: str = "docs/language.md",
    given: Collection[str] = (),
) -> int:
    """Do one step of the experiment.

    Args:
        command: corpus, train, decode, report, demo or generate.
        train: Folders of text files to train on by name, of which a part is held out, for corpus.
        test: Folders of text files for tests alone, by name.
        out: Folder of corpus and checkpoint.
        results: Folder of the results.
        sizes: Sizes of the models to train or measure.
        device: Device of the training.
        processes: Runs that are trained at the same time, each in a process with one thread, or a stream of the GPU.
        minutes: Duration of the demo's training, and of decode for a size.
        configuration: The demo's model.
        prompt: Start of the text.
        tokens: Number of tokens to generate.
        page: Page of the report.
    """
    uses = {
        "corpus": ["train", "test"],
        "train": ["device", "processes"],
        "train or decode": ["sizes"],
        "train, decode or report": ["results"],
        "report": ["page"],
        "demo": ["configuration"],
        "demo or decode": ["minutes"],
        "demo or generate": ["prompt", "tokens"],
    }
    refuse_idle(given, {commands: (command in commands, names) for commands, names in uses.items()})
    folder, store = Path(out), Path(results) / RESULTS
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: PyTorch finds no GPU; leave it out")
    if command == "corpus":
        if not train:
            raise InputError("corpus: give a folder with a name of yours, such as --train.mine texts/")
        for name, size in build_corpus(folder / "corpus.pt", train, test).items():
            print(f"{name}: {size / 1e6:.2f} MB")
    elif command == "report":
        files = {size: store.with_name(f"decoding-{size}.json") for size in SIZES}
        found = {size: json.loads(file.read_text()) for size, file in files.items() if file.exists()}
        publish(read_results(store), found, Path(page))
    elif command == "generate":
        write_continuation(*load_model(folder / "demo.pt"), prompt, tokens)
    else:
        corpus = load(folder / "corpus.pt", Corpus, "corpus")
        if command == "train":
            return int(train_all(list(sizes), folder / "corpus.pt", store, device, processes) > 0)
        if command == "decode":
            for size in sizes:
                found = measure(size, len(corpus.token_bytes), 60 * minutes)
                write_text(store.with_name(f"decoding-{size}.json"), json.dumps(found, indent=1) + "\n")
        else:
            model = train_demo(corpus, configuration, minutes)
            save_model(folder / "demo.pt", model, corpus.tokeniser)
            write_continuation(model, corpus.tokeniser, prompt, tokens)
    return 0


def train_all(sizes: list[str], corpus: Path, store: Path, device: str, processes: int) -> int:
    """Train the runs that have no results, those of the search first; gives how many failed."""
    fix(asdict(BUDGET), store)
    names = {*load(corpus, Corpus, "corpus").texts} - {"train", "validation"}
    for run, found in read_results(store).items():
        if run.seed != SEARCH_SEED and {*found["texts"]} != names:
            raise InputError(
                f"{store}: has runs on another corpus ({', '.join(found['texts'])}); choose another --results"
            )

    def finish_all(runs: list[Run]) -> int:
        return finish(
            [Job(store, run, train_run, (run, corpus, device, BUDGET)) for run in runs], processes, device=device
        )

    while missing(search := search_runs(read_results(store)), store):  # which may need more runs then
        if failed := finish_all(search):
            return failed
    return finish_all(runs_of(sizes, read_results(store)))


def train_demo(corpus: Corpus, configuration: str, minutes: float) -> GPT:
    """Train a small model for some minutes, and print its loss."""
    config, text = model_config("small", configuration, len(corpus.token_bytes)), corpus.texts["train"]
    trial = Budget(steps=8, batch=4, windows=64)
    seconds = timeit(lambda: list(steps(GPT(config), text, RATES[1], 0, trial)), number=1)
    count = max(8, int(60 * minutes / seconds * trial.steps))
    model, began = GPT(config), time.perf_counter()
    for step, loss in enumerate(steps(model, text, RATES[1], 0, replace(trial, steps=count)), start=1):
        if step % (count // 8) == 0:
            print(f"step {step} of {count}, {time.perf_counter() - began:.0f} s, loss {loss:.3f}", flush=True)
    found = measure_loss(model, corpus.texts["validation"], corpus.token_bytes, trial)
    print(f"{found['bits_per_byte']:.3f} bits per byte of validation text\n")
    return model


def write_continuation(model: GPT, tokeniser: str, prompt: str, count: int) -> None:
    """Print a prompt, and the generated text as it comes."""
    from tokenizers import Tokenizer
    from tokenizers.decoders import DecodeStream

    tokenizer, stream = Tokenizer.from_str(tokeniser), DecodeStream(skip_special_tokens=True)
    print(prompt, end="", flush=True)
    for token in model.generate(torch.tensor(tokenizer.encode(prompt).ids or [0]), count):
        print(stream.step(tokenizer, token) or "", end="", flush=True)  # a character may take several tokens
    print()


if __name__ == "__main__":
    sys.exit(main(script=sys.modules[__name__]))
