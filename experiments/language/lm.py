"""Partial attention in language models: make the corpus, train the models, generate text, measure decoding, report."""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from corpus import build_corpus
from gpt import GPT
from grid import BASELINE, CONFIGURATIONS, FAMILY, RATES, SIZES, STAGES, TRIAL, Budget, jobs, model_config, search_jobs
from training import Training, chosen_rates, load, measure_loss, missing, open_corpus, save, train_all

from patnet import InputError
from patnet.errors import require
from patnet.files import write_text

EXAMPLES = """examples:
  sh experiments/language/packages.sh                                the corpus, from packages with apt-get and npm
  python experiments/language/lm.py corpus --train mine=texts/ --test other=more/       or from folders of your own
  python experiments/language/lm.py train search small --plan        how long it takes here
  python experiments/language/lm.py train search small               resumes: runs with results are not repeated
  python experiments/language/lm.py train search small 30m medium large --device cuda --graphs --workers 4 --together 4
  python experiments/language/lm.py decode
  python experiments/language/lm.py report
  python experiments/language/lm.py demo
  python experiments/language/lm.py generate runs/language/demo.pt --prompt "The kernel" """


def corpus(args: argparse.Namespace) -> int:
    """Make the corpus from folders of text files."""
    for pair in args.train + args.test:
        if "=" not in pair:
            raise InputError(f"{pair}: give a name and a folder, such as mine={pair}")
    train_on, tests = ({n: Path(f) for n, f in (p.split("=", 1) for p in pairs)} for pairs in (args.train, args.test))
    for name, size in build_corpus(args.corpus, train_on, tests).items():
        print(f"{name}: {size / 1e6:.2f} MB")
    return 0


def train(args: argparse.Namespace) -> int:
    """Train the runs of stages that have no results."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: PyTorch finds no GPU; leave it out")
    if args.graphs and args.device != "cuda":
        raise InputError("--graphs: CUDA graphs need --device cuda")
    open_corpus(args.corpus)  # said before the workers start if there is none
    if args.plan:
        return plan(args)
    end, left = time.time() + 60 * args.minutes, 0
    if "search" in args.stages:
        left = train_all(search_jobs(), args, end)
    if stages := [stage for stage in args.stages if stage != "search"]:
        left += train_all(jobs(stages, chosen_rates(args.out)), args, end)
    print(f"{left} runs are missing: the same command trains them" if left else "All runs have results.")
    return int(left > 0)


def plan(args: argparse.Namespace) -> int:
    """Measure steps of the baseline, and print how long the missing runs take in one process."""
    torch.set_num_threads(args.threads)
    text, budget, total = open_corpus(args.corpus).texts["train"].to(args.device), Budget(), 0.0
    try:
        rates = chosen_rates(args.out)
    except InputError:  # then no run of another stage has results
        rates = dict.fromkeys(FAMILY.values(), RATES[0])
    for stage in args.stages:
        count = len(missing(search_jobs() if stage == "search" else jobs([stage], rates), args.out))
        config = model_config(
            "small" if stage == "search" else stage, BASELINE, len(open_corpus(args.corpus).token_bytes)
        )
        run, seconds = Training(config, text, RATES[0], 0, budget), []
        for step in range(5):
            began = time.perf_counter()
            run.step()
            run.losses[step].item()
            seconds.append(time.perf_counter() - began)
        one = sorted(seconds)[1] * budget.steps / 60
        total += one * count
        print(f"{stage}: {count} runs of {one:.1f} min")
    print(f"{total:.0f} min in total for one process with one run at a time, without graphs")
    return 0


def decode(args: argparse.Namespace) -> int:
    """Measure prefill, decoding and cache of each configuration on one CPU thread."""
    from decoding import measure

    found = measure(args.size, list(CONFIGURATIONS), len(open_corpus(args.corpus).token_bytes), 60 * args.minutes)
    write_text(args.out / f"decoding-{args.size}.json", json.dumps(found, indent=1) + "\n")
    return 0


def report(args: argparse.Namespace) -> int:
    """Write figure and tables into a page, between its marks."""
    from findings import publish

    publish(args.out, args.page)
    return 0


def write_continuation(model: GPT, tokeniser: str, args: argparse.Namespace) -> int:
    """Print the prompt, and the generated text as it comes."""
    require(["tokenizers"], "hub", "lm.py")
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokeniser)
    prompt, generated, shown = torch.tensor(tokenizer.encode(args.prompt).ids or [0]), [], ""
    print(args.prompt, end="", flush=True)
    for token in model.generate(prompt, args.tokens, seed=args.seed):
        generated.append(token)
        text = tokenizer.decode(generated)
        if not text.endswith("\ufffd"):  # a character may take several tokens
            print(text[len(shown) :], end="", flush=True)
            shown = text
    print()
    return 0


def demo(args: argparse.Namespace) -> int:
    """Train the small model for some minutes, save it, and generate text."""
    torch.set_num_threads(args.threads)
    found = open_corpus(args.corpus)
    config = model_config("small", args.configuration or "pat_sf-1-2", len(found.token_bytes))
    text, trial, began = found.texts["train"], Budget(steps=8, batch=4, windows=64), time.perf_counter()
    run = Training(config, text, 2e-3, args.seed, trial)
    for _ in range(trial.steps):  # how long a step takes
        run.step()
    steps = max(8, int(60 * args.minutes / (time.perf_counter() - began) * trial.steps))
    run, began = Training(config, text, 2e-3, args.seed, Budget(steps, trial.batch)), time.perf_counter()
    for step in range(steps):
        run.step()
        if (step + 1) % (steps // 8) == 0:
            print(
                f"step {step + 1} of {steps}, {time.perf_counter() - began:.0f} s, loss {run.losses[step]:.3f}",
                flush=True,
            )
    model = run.model.eval()
    loss = measure_loss(model, found.texts["validation"], found.token_bytes, trial)
    save(args.checkpoint, model, found.tokeniser)
    print(f"{loss['bits_per_byte']:.3f} bits per byte of validation text; {args.checkpoint}\n")
    return write_continuation(model, found.tokeniser, args)


def generate(args: argparse.Namespace) -> int:
    """Continue a prompt with a checkpoint."""
    model, tokeniser = load(args.checkpoint)
    if args.configuration:
        config = model_config(args.size, args.configuration, model.config.vocab_size, model.config.context)
        model, tokeniser = load(args.checkpoint, config)
    return write_continuation(model, tokeniser, args)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; an error message exits with code 2."""
    root, files, text = Path("runs/language"), {}, {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser("lm.py", description=__doc__, epilog=EXAMPLES, **text)
    parsers = parser.add_subparsers(dest="command", required=True)
    for command in (corpus, train, decode, report, demo, generate):
        files[command.__name__] = parsers.add_parser(
            command.__name__, help=command.__doc__, description=command.__doc__
        )
        files[command.__name__].set_defaults(run=command)

    def option(commands: str, *names: str, **rest: object) -> None:
        for name in commands.split():
            files[name].add_argument(*names, **rest)

    option("corpus train decode demo", "--corpus", type=Path, default=root / "corpus.npz", help="file of the corpus")
    option("corpus", "--train", nargs="+", required=True, metavar="NAME=FOLDER", help="to train on; a part is held out")
    option("corpus", "--test", nargs="+", default=[], metavar="NAME=FOLDER", help="for tests alone")
    option("train", "stages", nargs="+", choices=["search", *STAGES], help="search chooses the learning rates")
    option("train", "--plan", action="store_true", help="print how long it takes, and do nothing else")
    option("train", "--device", choices=["cpu", "cuda"], default="cpu", help="device (cpu)")
    option("train", "--graphs", action="store_true", help="replay steps as CUDA graphs")
    option("train", "--together", type=int, default=1, help="runs that a process trains side by side (1)")
    option("train", "--workers", type=int, default=1, help="number of processes (1)")
    option("train", "--keep", action="store_true", help="keep a checkpoint of each run")
    option("train", "--trial", action="store_true", help=f"{TRIAL.steps} steps a run, to try the command")
    option("train demo", "--threads", type=int, default=os.cpu_count(), help="CPU threads of a process (all)")
    option("train", "--minutes", type=float, default=math.inf, help="no run starts after this time")
    option("decode", "--minutes", type=float, default=2.0, help="duration of the measurement (2)")
    option("demo", "--minutes", type=float, default=3.0, help="duration of the training (3)")
    option("train decode report", "--out", type=Path, default=root / "results", help="directory of the results")
    option("report", "--page", type=Path, default=Path("docs/language.md"), help="the page")
    option("demo", "--checkpoint", type=Path, default=root / "demo.pt", help="file to write")
    option("generate", "checkpoint", type=Path, help="a file of demo or of train --keep")
    option("decode generate", "--size", choices=SIZES, default="small", help="size (small)")
    option("demo generate", "--configuration", choices=CONFIGURATIONS, help="generate refuses a checkpoint of another")
    option("demo generate", "--prompt", default="The kernel", help="start of the text")
    option("demo generate", "--tokens", type=int, default=300, help="number of tokens to generate (300)")
    option("demo generate", "--seed", type=int, default=0, help="random seed (0)")
    args = parser.parse_args(arguments)
    try:
        return args.run(args)
    except InputError as error:
        print(f"lm.py: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
