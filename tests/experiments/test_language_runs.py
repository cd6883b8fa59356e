"""The language models' experiment from text to report, on a little text."""

import gzip
import json
import math
import random
import re
import zlib
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from language import decoding, report
from language import run as script
from language.corpus import END, Corpus, build_corpus, load, read_texts
from language.gpt import GPT
from language.protocol import (
    CONFIGURATIONS,
    FAMILY,
    RATES,
    SCALED,
    SEARCH_SEED,
    Budget,
    model_config,
    runs_of,
    search_runs,
)
from language.report import compare, publish, shown, verdict
from language.training import load_model, measure_loss, read_results, save_model, steps, train_run
from paired import Estimate
from pool import RESULTS, fix, missing, result_of
from report import MARKS

from patnet import InputError
from patnet.cli import main

TRIAL = Budget(steps=3, batch=2, context=32, windows=2)
TEXT = "the kernel reads a page of memory and writes it to the disk when the lock is free, naïvely"


def write_text_files(folder: Path, count: int, seed: int = 0) -> Path:
    folder.mkdir(parents=True)
    draw = random.Random(seed)
    for i in range(count):
        (folder / f"{i:02d}.txt").write_text(
            f"File {seed}-{i}.\n" + " ".join(draw.choices(TEXT.split(), k=400)), "utf-8"
        )
    return folder


def command(*words) -> int:
    return main([str(word) for word in words], script)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the corpus of a little text."""
    root = tmp_path_factory.mktemp("text")
    options = ["--train.kernel", write_text_files(root / "kernel", 40)]
    options += ["--train.python", write_text_files(root / "python", 30, 1)]
    options += ["--test.brown", write_text_files(root / "brown", 3, 2)]
    options += ["--test.austen", write_text_files(root / "austen", 3, 3)]
    assert command("corpus", "--out", root / "out", *options) == 0
    return root / "out"


@pytest.fixture(scope="module")
def corpus(folder):
    return load(folder / "corpus.pt", Corpus, "corpus")


def test_the_split_is_by_file_without_duplicates_and_nothing_is_lost(tmp_path):
    folder = write_text_files(tmp_path / "a", 60)
    (folder / "copy.md").write_text((folder / "00.txt").read_text("utf-8"), "utf-8")
    (folder / "packed.rst.gz").write_bytes(gzip.compress("Packed text, é.\n".encode()))
    (folder / "image.png").write_bytes(b"\x89PNG\xff")
    sizes = build_corpus(tmp_path / "c.pt", {"a": str(folder)}, {})
    corpus = load(tmp_path / "c.pt", Corpus, "corpus")
    tokenizer = tokenizers.Tokenizer.from_str(corpus.tokeniser)
    texts = []
    for name, tokens in corpus.texts.items():
        parts = tokenizer.decode(tokens.tolist(), skip_special_tokens=False).split(END)
        assert parts.pop() == ""  # the last file ends too
        assert sum(len(part.encode()) for part in parts) == sizes[name] == corpus.token_bytes[tokens.long()].sum()
        texts += parts
    expected = [path.read_text("utf-8") for path in folder.glob("*.txt")] + ["Packed text, é.\n"]
    assert sorted(texts) == sorted(expected)
    assert list(corpus.texts) == ["train", "validation", "a"]
    assert all(len(tokens) > 0 for tokens in corpus.texts.values())


def test_texts_of_the_packages_are_read(tmp_path):
    tagged = "\tThe/at safe/jj ''/'' at/in Ingleside/np ,/, it/pps is/bez (/( old/jj )/) ./.\n"
    (tmp_path / "ca01").write_text(tagged)
    assert list(read_texts(tmp_path / "ca01")) == ['The safe" at Ingleside, it is (old).']
    lines = ["PRIDE", "", "Zoë"]
    strings = b"".join(
        b"\0" + (b"\x04\0\t" if s.isascii() else b"\0\x80\t") + len(s.encode()).to_bytes(4) + s.encode() for s in lines
    )
    vector = zlib.compress(b"X\n\0\0\0\3\0\4\2\1\0\3\5\0\0\0\0\5UTF-8\0\0\0\x10\0\0\0\3" + strings)
    (tmp_path / "Rdata.rdb").write_bytes((b"\0\0\0\x50" + vector) * 2)
    assert list(read_texts(tmp_path / "Rdata.rdb")) == ["PRIDE\n\nZoë"] * 2


def test_training_learns_and_is_the_same_again(corpus):
    budget = Budget(steps=30, batch=4, context=32)

    def losses(seed):
        torch.manual_seed(seed)
        model = GPT(model_config("small", "pat_sf-1-2", len(corpus.token_bytes), 32))
        return torch.stack(list(steps(model, corpus.texts["train"], 4e-3, seed, budget)))

    first, again, other = (losses(seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first[0] == pytest.approx(math.log(len(corpus.token_bytes)), abs=0.3)
    assert first[-1] < first[0] - 1


def test_the_learning_rate_rises_and_falls(corpus, monkeypatch):
    found = []
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: found.append(self.param_groups[1]["lr"]))
    model = GPT(model_config("small", "full", len(corpus.token_bytes), 8))
    for _ in steps(model, corpus.texts["train"], 1.0, 0, Budget(steps=60, batch=1, context=8)):
        pass
    assert found[:3] == pytest.approx([1 / 3, 2 / 3, 1])  # 5 % of the steps
    assert found[2:] == sorted(found[2:], reverse=True)
    assert found[-1] == pytest.approx(0.1)


def test_bits_per_byte_of_a_model_that_knows_nothing(corpus):
    model = GPT(model_config("small", "full", len(corpus.token_bytes), 16))
    model.tokens.weight.data.zero_()  # all tokens are equally likely
    text, budget = corpus.texts["kernel"], Budget(context=16, windows=10**6)
    found = measure_loss(model, text, corpus.token_bytes, budget)
    mean_bytes = corpus.token_bytes[text.long()].float().mean().item()
    assert found["loss"] == pytest.approx(math.log(len(corpus.token_bytes)), rel=1e-4)
    assert found["bits_per_byte"] == pytest.approx(math.log2(len(corpus.token_bytes)) / mean_bytes, rel=0.02)


@pytest.fixture(scope="module")
def trained(folder):
    """The file of the results of all runs of size small, a few steps each."""
    store = folder / "results" / RESULTS
    fix(asdict(TRIAL), store)
    store.touch()
    for stage in (search_runs, search_runs, partial(runs_of, ["small"])):
        for run in missing(stage(read_results(store)), store):
            with store.open("a") as file:
                file.write(json.dumps(result_of(train_run, run, folder / "corpus.pt", "cpu", TRIAL)) + "\n")
    return store


def test_results_have_what_the_report_needs_and_no_test_text_chooses_a_rate(trained):
    results = read_results(trained)
    assert {*results} == {*search_runs(results), *runs_of(["small"], results)}
    assert len(runs_of(["small"], results)) == 3 * len(CONFIGURATIONS)
    for run, found in results.items():
        searched = run.seed == SEARCH_SEED
        assert set(found["texts"]) == ({"validation"} if searched else {"kernel", "python", "brown", "austen"})
        assert len(found["losses"]) == TRIAL.steps
        assert all(0 < text["bits_per_byte"] < 10 for text in found["texts"].values())


@pytest.mark.parametrize(("best", "tried"), [(0, 4), (1, 4), (2, 3), (3, 4), (4, 4)])
def test_the_search_finds_the_rate_of_the_lowest_validation_loss(best, tried):
    done = {}
    while left := [job for job in search_runs(done) if job not in done]:
        for job in left:
            bits = math.nan if RATES.index(job.rate) < best - 1 else abs(math.log(job.rate / RATES[best]))
            done[job] = {"texts": {"validation": {"bits_per_byte": bits}}}
    found = runs_of(["small", "medium"], done)
    assert len(done) == tried * len({*FAMILY.values()})
    assert {job.rate for job in found} == {RATES[best], RATES[best] * 128 / 192}
    assert len({*found}) == len(found) == 3 * (len(CONFIGURATIONS) + len(SCALED))


def test_runs_with_results_are_not_repeated_and_a_process_trains_the_others(
    folder, trained, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(script, "BUDGET", TRIAL)
    results = read_results(trained)
    removed = [run for run in results if run.configuration == "pat_ch" and run.seed in (1, 2)]
    (tmp_path / "protocol.json").write_text(trained.with_name("protocol.json").read_text())
    store = tmp_path / RESULTS
    store.write_text("".join(json.dumps(found) + "\n" for run, found in results.items() if run not in removed))
    options = ("--out", folder, "--results", tmp_path, "--processes", 1)
    assert command("train", *options) == 0
    assert "34 of 36 runs have results" in capsys.readouterr().out
    again = read_results(store)
    assert {run: again[run] for run in results if run not in removed} == {
        r: results[r] for r in results if r not in removed
    }
    for run in removed:
        assert again[run]["losses"] == pytest.approx(results[run]["losses"], abs=1e-4)
        assert again[run].keys() == results[run].keys()
    monkeypatch.setattr(script, "BUDGET", Budget())
    assert command("train", *options) == 2
    assert "steps was" in capsys.readouterr().err


def test_the_report_has_the_numbers_of_the_runs(trained, tmp_path, monkeypatch):
    for module in (decoding, report):
        monkeypatch.setattr(module, "POSITIONS", (8, 32))
    page, results = tmp_path / "language.md", read_results(trained)
    page.write_text(f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n")
    measured = decoding.measure("small", 300, 0)
    row = measured["rows"]["full"]
    assert row["cache"] == 6 * 2 * 128 * 4
    publish(results, {"small": measured}, page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    runs = [found for job, found in results.items() if job.configuration == "full" and job.seed in (0, 1, 2)]
    assert len(runs) == 3
    speed = " | ".join(f"{row[f'{what}_{n}']:.0f}" for what in ("prefill", "decode") for n in (8, 32))
    bits = np.mean([found["texts"]["brown"]["bits_per_byte"] for found in runs])
    assert re.search(
        rf"^\| full \| 3 \| {runs[0]['parameters']} \| [\d.]+ \| 6144 \| {re.escape(speed)} .*{bits:.4f}", text, re.M
    )
    assert (tmp_path / "images" / "language.png").stat().st_size > 10_000
    publish(results, {"small": measured}, page)
    assert page.read_text() == text
    publish(results, {}, page)
    assert "not measured" in page.read_text()


def test_differences_are_paired_relative_and_judged_by_their_interval():
    def runs(*bits):
        texts = [{"kernel": {"bits_per_byte": value}, "python": {"bits_per_byte": value}} for value in bits]
        return [{"seed": seed, "texts": found} for seed, found in enumerate(texts)]

    found = compare({"full": runs(1.0, 2.0, 3.0, 4.0), "pat_ch": runs(1.02, 2.042, 3.06)}, "pat_ch")
    assert found.mean == pytest.approx((2 + 2.1 + 2) / 3)
    assert verdict(found, found.p).startswith("worse")
    assert verdict(Estimate(3, 0.1, -0.9, 0.9, 0.4), 0.4) == "within 1 %"
    assert verdict(Estimate(3, 0.1, -1.1, 1.3, 0.4), 0.4).startswith("not significant")
    assert verdict(Estimate(1, 0.1), None) == "undecided"
    assert shown(compare({"full": runs(1.0)}, "pat_ch")) == "not measured"


def test_the_demo_writes_a_checkpoint_that_generates(folder, capsys):
    words = ["--out", folder, "--tokens", 20, "--prompt", "the kernel"]
    assert command("demo", *words, "--minutes", 0.01) == 0
    printed = capsys.readouterr().out
    assert "bits per byte of validation text" in printed
    assert command("generate", *words) == 0
    again = capsys.readouterr().out
    assert again.startswith("the kernel")
    assert len(again) > 20
    assert printed.endswith(again)


def bad(capsys, *words) -> str:
    assert command(*words) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    return line


def test_bad_input(folder, corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "latin", "runs"):
        (tmp_path / name).mkdir()
    Path("latin/a.txt").write_bytes("café".encode("latin-1"))
    Path("runs/corpus.pt").write_bytes(b"nothing")
    Path("runs/demo.pt").write_bytes(b"nothing")
    write_text_files(tmp_path / "few", 2)
    assert "empty: no text; text files end in" in bad(capsys, "corpus", "--train.a", "empty")
    assert "a.txt: not UTF-8 (byte 3)" in bad(capsys, "corpus", "--train.a", "latin")
    assert "missing: no such folder" in bad(capsys, "corpus", "--train.a", "missing")
    assert "give a folder with a name" in bad(capsys, "corpus")
    assert "2 different text files; 3 are needed" in bad(capsys, "corpus", "--train.a", "few")
    assert "no such file; make it with" in bad(capsys, "train")
    assert "corpus.pt: the checkpoint is damaged" in bad(capsys, "train", "--out", "runs")
    assert "no results: train first" in bad(capsys, "report")
    assert "no such file" in bad(capsys, "generate")
    assert "demo.pt: the checkpoint is damaged" in bad(capsys, "generate", "--out", "runs")
    assert "huge" in bad(capsys, "train", "--sizes", "huge")
    assert "no configuration" in bad(capsys, "demo", "--out", folder, "--configuration", "fulll")
    if not torch.cuda.is_available():
        assert "PyTorch finds no GPU" in bad(capsys, "train", "--device", "cuda")

    write_text_files(tmp_path / "train", 60)
    assert "train: is the name of another text" in bad(capsys, "corpus", "--train.train", "train")
    assert "mine: is the name of another text" in bad(capsys, "corpus", "--train.mine", "train", "--test.mine", "few")
    Path("short").mkdir()
    Path("short/a.txt").write_text("short")
    assert "short: a text of" in bad(capsys, "corpus", "--train.mine", "train", "--test.short", "short")
    assert "--sizes: belongs to train or decode" in bad(capsys, "demo", "--out", folder, "--sizes", "large")

    own = Path("own/demo.pt")
    save_model(own, GPT(model_config("small", "full", len(corpus.token_bytes), 32)), corpus.tokeniser)
    message = bad(capsys, "generate", "--out", "own", "--tokens", 100)
    assert "33 positions: the context of this model is 32; give fewer tokens" in message
    model, text = load_model(own)[0], corpus.texts["train"]
    with pytest.raises(InputError, match="32 tokens to train on; 33 are needed"):
        next(steps(model, text[:32], 1e-3, 0, replace(TRIAL, context=32)))
    with pytest.raises(InputError, match="a text of 32 tokens; 33 are needed"):
        measure_loss(model, text[:32], corpus.token_bytes, replace(TRIAL, context=32))
