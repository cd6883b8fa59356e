"""The language models' experiment from text to report, on a little text."""

import gzip
import json
import math
import random
import re
import zlib
from argparse import Namespace
from pathlib import Path

import findings
import numpy as np
import pytest
import torch
from corpus import END, build_corpus, load_corpus, read_texts
from decoding import measure
from findings import MARKS, compare, publish, verdict
from gpt import GPT
from grid import CONFIGURATIONS, FAMILY, RATES, SCALED, SEARCH_SEED, TRIAL, Budget, Job, jobs, model_config, search_jobs
from lm import main
from paired import Estimate
from training import Training, chosen_rates, load, measure_loss, save, train_group

from patnet import InputError

tokenizers = pytest.importorskip("tokenizers")
TEXT = "the kernel reads a page of memory and writes it to the disk when the lock is free, naïvely"


def write_text_files(folder: Path, count: int, seed: int = 0) -> Path:
    folder.mkdir(parents=True)
    draw = random.Random(seed)
    for i in range(count):
        (folder / f"{i:02d}.txt").write_text(
            f"File {seed}-{i}.\n" + " ".join(draw.choices(TEXT.split(), k=400)), "utf-8"
        )
    return folder


@pytest.fixture(scope="module")
def corpus_file(tmp_path_factory):
    root = tmp_path_factory.mktemp("text")
    docs, python = write_text_files(root / "kernel", 40), write_text_files(root / "python", 30, 1)
    out = root / "corpus.npz"
    others = [f"{name}={write_text_files(root / name, 3, 2 + i)}" for i, name in enumerate(("brown", "austen"))]
    assert (
        main(["corpus", "--corpus", str(out), "--train", f"kernel={docs}", f"python={python}", "--test", *others]) == 0
    )
    return out


def test_the_split_is_by_file_without_duplicates_and_nothing_is_lost(tmp_path):
    folder = write_text_files(tmp_path / "a", 60)
    (folder / "copy.md").write_text((folder / "00.txt").read_text("utf-8"), "utf-8")
    (folder / "packed.rst.gz").write_bytes(gzip.compress("Packed text, é.\n".encode()))
    (folder / "image.png").write_bytes(b"\x89PNG\xff")
    sizes = build_corpus(tmp_path / "c.npz", {"a": folder}, {})
    corpus = load_corpus(tmp_path / "c.npz")
    tokenizer = tokenizers.Tokenizer.from_str(corpus.tokeniser)
    texts = []
    for name, tokens in corpus.texts.items():
        parts = tokenizer.decode(tokens.tolist(), skip_special_tokens=False).split(END)
        assert parts.pop() == ""  # the last file ends too
        assert sum(len(part.encode()) for part in parts) == sizes[name] == corpus.token_bytes[tokens.long()].sum()
        texts += parts
    expected = [path.read_text("utf-8") for path in folder.glob("*.txt")] + ["Packed text, é.\n"]
    assert sorted(texts) == sorted(expected)
    assert [len(corpus.texts[name]) > 0 for name in ("train", "validation", "a")] == [True] * 3
    assert corpus.tests == ["a"]


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


def test_a_run_learns_and_is_the_same_again(corpus_file):
    corpus = load_corpus(corpus_file)
    text, budget = corpus.texts["train"], Budget(steps=30, batch=4, context=32, windows=8)
    config = model_config("small", "pat_sf-1-2", len(corpus.token_bytes), 32)
    runs = [Training(config, text, 4e-3, seed, budget) for seed in (0, 0, 1)]
    for run in runs:
        for _ in range(budget.steps):
            run.step()
    first, again, other = (run.losses for run in runs)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first[0] == pytest.approx(math.log(len(corpus.token_bytes)), abs=0.3)
    assert first[-1] < first[0] - 1
    assert runs[0].rates.argmax() == 0  # 5 % of the steps, here one
    assert runs[0].rates[-1] == pytest.approx(4e-4)
    assert runs[0].optimizer.param_groups[0]["lr"] == pytest.approx(4e-4)


def test_bits_per_byte_of_a_model_that_knows_nothing(corpus_file):
    corpus = load_corpus(corpus_file)
    model = GPT(model_config("small", "full", len(corpus.token_bytes), 16))
    model.tokens.weight.data.zero_()  # all tokens are equally likely
    text, budget = corpus.texts["kernel"], Budget(context=16, windows=10**6)
    found = measure_loss(model, text, corpus.token_bytes, budget)
    mean_bytes = corpus.token_bytes[text.long()].float().mean().item()
    assert found["perplexity"] == pytest.approx(len(corpus.token_bytes), rel=1e-4)
    assert found["bits_per_byte"] == pytest.approx(math.log2(len(corpus.token_bytes)) / mean_bytes, rel=0.02)


@pytest.fixture(scope="module")
def trained(corpus_file, tmp_path_factory):
    """The results of all runs of the stages search and small, a few steps each."""
    out = tmp_path_factory.mktemp("results")
    args = Namespace(
        trial=True, corpus=corpus_file, out=out, device="cpu", graphs=False, threads=1, workers=1, keep=False
    )
    train_group(search_jobs(), args, math.inf)
    train_group(jobs(["small"], chosen_rates(out)), args, math.inf)
    return out


def test_results_have_what_the_report_needs_and_no_test_text_chooses_a_rate(trained):
    found = [json.loads(path.read_text()) for path in trained.glob("*.json")]
    assert len(found) == len(set(FAMILY.values())) * len(RATES) + 3 * len(CONFIGURATIONS)
    for run in found:
        tests = [] if run["seed"] == SEARCH_SEED else ["kernel", "python", "brown", "austen"]
        assert list(run["texts"]) == ["validation", *tests]
        assert len(run["losses"]) == run["budget"]["steps"] == TRIAL.steps
        assert all(0 < text["bits_per_byte"] < 10 for text in run["texts"].values())
    best = chosen_rates(trained)
    bits = {
        r["rate"]: r["texts"]["validation"]["bits_per_byte"]
        for r in found
        if (r["seed"], r["configuration"]) == (SEARCH_SEED, "full")
    }
    assert best["full"] == min(bits, key=bits.get)


def test_runs_with_results_are_not_repeated_and_workers_train_the_others(corpus_file, trained, tmp_path, capsys):
    out = tmp_path / "results"
    out.mkdir()
    for path in trained.glob("*.json"):
        (out / path.name).write_bytes(path.read_bytes())
    removed = list(out.glob("*pat_ch-0*-seed1.json"))
    times = {path: path.stat().st_mtime_ns for path in out.glob("*.json") if path not in removed}
    for path in removed:
        path.unlink()
    command = ["train", "search", "small", "--trial", "--corpus", str(corpus_file), "--out", str(out), "--threads", "1"]
    assert main([*command, "--minutes", "0"]) == 1
    assert "1 runs are missing" in capsys.readouterr().out
    assert main([*command, "--workers", "2", "--together", "2"]) == 0
    assert "All runs have results." in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in times} == times
    for path in removed:  # the same run, alone in a process and beside others
        again, before = (json.loads((folder / path.name).read_text()) for folder in (out, trained))
        assert again["losses"] == pytest.approx(before["losses"], abs=1e-4)


def test_the_plan_counts_missing_runs(corpus_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("lm.Budget", lambda: TRIAL)
    assert (
        main(
            ["train", "search", "30m", "--plan", "--corpus", str(corpus_file), "--out", str(tmp_path), "--threads", "1"]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert "search: 20 runs of" in printed
    assert f"30m: {len(SCALED)} runs of" in printed


def test_the_report_has_the_numbers_of_the_runs(trained, tmp_path):
    page = tmp_path / "language.md"
    page.write_text(f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n")
    row = measure("small", ["full", "pat_ch"], 300, 0, (8, 16))["rows"]["full"]
    assert row["cache_token"] == 6 * 2 * 128 * 4
    assert row["cache"] == 16 * row["cache_token"]
    assert all(row[f"{what}_{n}"] > 0 for what in ("prefill", "decode") for n in (8, 16))
    publish(trained, page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    runs = [json.loads(path.read_text()) for path in trained.glob("small-full-0*-seed[012].json")]
    mean = np.mean([run["texts"]["brown"]["bits_per_byte"] for run in runs])
    assert len(runs) == 3
    assert re.search(rf"^\| full \| 3 \| {runs[0]['parameters']} .*{mean:.4f}", text, re.M)
    assert (tmp_path / "images" / "language.png").stat().st_size > 10_000
    publish(trained, page)
    assert page.read_text() == text


def test_differences_are_paired_relative_and_judged_by_their_interval():
    def run(bits):
        return {"texts": {"kernel": {"bits_per_byte": bits}, "python": {"bits_per_byte": bits}}}

    full, ours = {0: run(1.0), 1: run(2.0), 2: run(3.0)}, {0: run(1.02), 1: run(2.042), 2: run(3.06)}
    found = compare({("small", "full"): full, ("small", "pat_ch"): ours}, "small", "pat_ch")
    assert found.mean == pytest.approx((2 + 2.1 + 2) / 3)
    assert verdict(found, found.p).startswith("worse")
    assert verdict(Estimate(3, 0.1, -0.9, 0.9, 0.4), 0.4) == "within 1 %"
    assert verdict(Estimate(3, 0.1, -1.1, 1.3, 0.4), 0.4).startswith("not significant")
    assert verdict(Estimate(1, 0.1), None) == "one seed"
    assert findings.shown(None) == "not measured"


def test_the_demo_writes_a_checkpoint_that_generates(corpus_file, tmp_path, capsys):
    file = tmp_path / "demo.pt"
    command = ["demo", "--corpus", str(corpus_file), "--minutes", "0.01", "--checkpoint", str(file), "--tokens", "20"]
    assert main([*command, "--threads", "1"]) == 0
    assert "bits per byte of validation text" in capsys.readouterr().out
    assert (
        main(["generate", str(file), "--tokens", "20", "--prompt", "the kernel", "--configuration", "pat_sf-1-2"]) == 0
    )
    printed = capsys.readouterr().out
    assert printed.startswith("the kernel")
    assert len(printed) > 20
    assert main(["generate", str(file), "--tokens", "20", "--prompt", "the kernel"]) == 0
    assert capsys.readouterr().out == printed


def bad(capsys, *arguments) -> str:
    assert main([str(a) for a in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    return line


def test_bad_input(corpus_file, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    empty, latin = tmp_path / "empty", tmp_path / "latin"
    empty.mkdir()
    latin.mkdir()
    (latin / "a.txt").write_bytes("café".encode("latin-1"))
    assert "empty: no text; text files end in" in bad(capsys, "corpus", "--train", f"a={empty}")
    assert "a.txt: not UTF-8 (byte 3)" in bad(capsys, "corpus", "--train", f"a={latin}")
    assert "missing: no such folder" in bad(capsys, "corpus", "--train", "a=missing")
    assert "give a name and a folder" in bad(capsys, "corpus", "--train", "texts")
    few = write_text_files(tmp_path / "few", 2)
    assert "2 different text files; 3 are needed" in bad(capsys, "corpus", "--train", f"a={few}")
    assert "no such file; make it with" in bad(capsys, "train", "small")
    (tmp_path / "no.npz").write_bytes(b"nothing")
    assert "not a corpus" in bad(capsys, "train", "small", "--corpus", "no.npz")
    assert "20 runs that choose the learning rates are missing" in bad(
        capsys, "train", "small", "--corpus", corpus_file
    )
    assert "no results" in bad(capsys, "report")
    assert "no such file" in bad(capsys, "generate", "demo.pt")
    assert "not a checkpoint" in bad(capsys, "generate", "no.npz")
    assert "CUDA graphs need --device cuda" in bad(capsys, "train", "small", "--graphs")
    if not torch.cuda.is_available():
        assert "PyTorch finds no GPU" in bad(capsys, "train", "small", "--device", "cuda")

    corpus = load_corpus(corpus_file)
    save(tmp_path / "own.pt", GPT(model_config("small", "full", len(corpus.token_bytes), 32)), corpus.tokeniser)
    message = bad(capsys, "generate", "own.pt", "--configuration", "gqa-1-2")
    assert "checkpoint of another configuration (kv_heads 0, not 2)" in message
    message = bad(capsys, "generate", "own.pt", "--tokens", "100")
    assert "33 positions: the context of this model is 32; give fewer tokens" in message
    assert load(tmp_path / "own.pt")[0].config.context == 32
    short = corpus.texts["train"][:32]
    with pytest.raises(InputError, match="32 tokens to train on; 65 are needed"):
        Training(model_config("small", "full", 99, 64), short, 1e-3, 0, TRIAL)


def test_names_of_runs_differ():
    found = [*search_jobs(), *jobs(["small", "medium", "large", "30m"], dict.fromkeys(FAMILY.values(), 2e-3))]
    assert len({job.name for job in found}) == len(found) == 98
    assert Job("medium", "full", 2e-3 * 128 / 192, 0) in found
