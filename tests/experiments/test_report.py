"""Answers to claims, from results whose right answer is known."""

import json
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paired import Estimate, difference
from PIL import Image
from protocol import HIGHER, NOT_LOWER, PROTOCOL, Claim, Run, read_protocol
from report import MARKS, RESULTS, Comparison, compare, publish, read_results, to_markdown

from patnet import InputError

TEST = {"margin": 0.003, "level": 0.05}


@pytest.mark.parametrize(
    ("expected", "low", "high", "p", "answer"),
    [
        (HIGHER, 0.004, 0.008, 0.01, "seen"),
        (HIGHER, 0.0005, 0.008, 0.04, "seen"),
        (HIGHER, 0.0005, 0.008, 0.06, "undecided"),
        (HIGHER, -0.008, -0.004, 0.01, "not seen"),
        (HIGHER, -0.002, 0.002, 0.9, "not seen"),
        (HIGHER, 0.0005, 0.002, 0.01, "not seen"),  # too small to count
        (HIGHER, -0.004, 0.009, 0.3, "undecided"),
        (HIGHER, 0.001, 0.001, None, "not seen"),  # all pairs differ by the same
        (NOT_LOWER, -0.002, 0.002, 0.9, "seen"),
        (NOT_LOWER, -0.002, -0.001, 0.01, "seen"),
        (NOT_LOWER, 0.005, 0.02, 0.01, "seen"),
        (NOT_LOWER, -0.008, -0.001, 0.01, "not seen"),
        (NOT_LOWER, -0.008, 0.001, 0.2, "undecided"),
        (HIGHER, None, None, None, "undecided"),
    ],
)
def test_answers_follow_the_protocol(expected, low, high, p, answer):
    middle = 0.01 if low is None else (low + high) / 2
    claim = Claim("a", expected, "b", "a is better")
    assert Comparison(claim, Estimate(5, middle, low, high), p).answer(TEST) == answer


@given(
    st.lists(st.floats(-0.02, 0.02), min_size=2, max_size=6), st.lists(st.floats(-0.02, 0.02), min_size=6, max_size=6)
)
def test_a_claim_and_its_opposite_are_not_both_seen(first, second):
    answers = []
    for pair in ((first, second[: len(first)]), (second[: len(first)], first)):
        estimate = difference(*pair)
        answers.append(Comparison(Claim("a", HIGHER, "b", "text"), estimate, estimate.p).answer(TEST))
    assert answers != ["seen", "seen"]
    assert ("not seen" in answers) >= ("seen" in answers)


def write_run(out, configuration, seed, top1, moved=0.5, epochs=3, device=None):
    run = Run(configuration, seed, 0.004, epochs, device=device or ("cuda" if seed else "cpu"))
    result = {**run._asdict(), "top1": top1, "images": 10000, "moved": {"GCT": moved}, "seconds": 360.0}
    result["machine"] = {"cuda": "a GPU", "cpu": "a CPU"}[run.device]
    out.mkdir(exist_ok=True)
    with (out / RESULTS).open("a") as file:
        file.write(json.dumps(result) + "\n")


@pytest.fixture
def published(tmp_path):
    protocol, out = read_protocol(), tmp_path / "runs"
    offsets = {"base": 0.0, "se": -0.01, "srm": 0.0002, "gct": 0.01}
    for seed in range(5):
        noise = 0.91 + 0.002 * seed
        for name, offset in offsets.items():
            write_run(out, name, seed, noise + offset + 0.0005 * ((seed * 7 + len(name)) % 3 - 1), 0.001)
    latency = {size: {"ms": 2.0, "ratio": 1, "low": 1, "high": 1} for size in ("96 px", "224 px")}
    costs = {name: {"parameters": 10**6, "gmacs": 0.01, "latency": latency} for name in protocol.configurations}
    costs["se"] = {**costs["se"], "latency": {**latency, "96 px": {"ms": 4.0, "ratio": 2.2, "low": 2.0, "high": 2.5}}}
    (out / "costs.json").write_text(json.dumps({"configurations": costs, "machine": None}))
    (tmp_path / "experiments.md").write_text(f"# Before\n\n{MARKS[0]}\nold\n{MARKS[1]}\n\nafter\n")
    return protocol, out, publish(protocol, out, tmp_path).read_text(), tmp_path


def test_comparisons_have_the_known_differences(published):
    protocol, out, _, _ = published
    rows = {
        (c.claim.configuration, c.claim.baseline): c
        for c in compare(protocol.experiments["attentions"], read_results(protocol, out))
    }
    assert set(rows) == {("base", "se"), ("base", "srm"), ("gct", "base")}
    assert rows["base", "se"].estimate.mean == pytest.approx(0.01, abs=1e-3)
    assert rows["base", "srm"].p == pytest.approx(
        min(1, 3 * rows["base", "srm"].estimate.p)
    )  # the largest; two are missing
    assert max(row.p / row.estimate.p for row in rows.values()) == pytest.approx(5)  # of those that are planned
    assert rows["base", "se"].estimate.n == 5


def test_the_page_has_answers_invalid_runs_and_what_is_missing(published):
    protocol, _, text, folder = published
    assert text.startswith("# Before")
    assert text.endswith("after\n")
    assert "old" not in text
    assert f"20 of {5 * len(protocol.configurations)} runs have results" in text
    assert "Runs, 0 of them on both devices: 16 on a GPU; 4 on a CPU." in text
    rows = [line for line in text.splitlines() if "better than SE |" in line]
    assert "invalid: GCT hardly moved" in rows[0]  # each of these runs has it
    assert "| 0.45 (0.40 to 0.50) | 1.0 h | `--only base se` |" in rows[0]
    assert any("not run" in line for line in text.splitlines() if "PAT_sp improves" in line)
    assert "gct (invalid)" in text
    with Image.open(folder / "images" / "experiment-attentions.png") as image:
        assert image.width == 900
    assert not (folder / "images" / "experiment-mixers.png").exists() or "experiment-mixers.png" in text


def test_the_page_counts_the_answers_of_valid_runs_with_all_seeds(published):
    protocol, out, text, _ = published
    assert "Of 21 claims and open questions, with all seeds: 0 seen, 0 not seen, 0 undecided." in text
    store = out / RESULTS
    store.write_text(store.read_text().replace('{"GCT": 0.001}', '{"GCT": 0.5}'))
    counted = "with all seeds: 1 seen, 1 not seen, 0 undecided."  # better than SE; within the margin of SRM
    assert counted in to_markdown(protocol, read_results(protocol, out))


def test_a_second_report_replaces_the_first_and_counts_seeds_of_the_protocol_only(published):
    protocol, out, text, folder = published
    write_run(out, "base", 99, 0.5)
    assert publish(protocol, out, folder).read_text() == text
    fewer = replace(protocol, seeds=[[0, 1]])
    assert set(read_results(fewer, out).top1("base")) == {0, 1}


def test_latency_is_the_interleaved_ratio_to_base(published):
    protocol, out, _, _ = published
    results = read_results(protocol, out)
    assert results.latency("se", "base", "96 px") == "2.20 (2.00 to 2.50)"
    assert results.latency("base", "se", "96 px") == "0.45 (0.40 to 0.50)"
    assert (results.latency("se", "gct", "96 px"), results.latency("se", "se", "96 px")) == ("2.20", "1.00")
    assert results.latency("base", "base", "224 px") == "1.00"


def test_answers_from_fewer_seeds_than_planned_say_so(published):
    protocol, _, text, folder = published
    assert "preliminary" not in text
    for name, noise in (("ch-2282", 0.001), ("pconv-2282", -0.001)):
        for seed in range(2):
            write_run(folder / "few", name, seed, 0.9 + noise * seed, device="cuda")
    few = publish(protocol, folder / "few", folder).read_text()
    assert "| undecided, preliminary (2 of 5 seeds) | +0.10 (-1.17 to +1.37)" in few
    assert "is 0.07 points, pooled" in few


def test_runs_are_paired_on_one_device_only(tmp_path):
    """A seed counts once: it has the mean of the devices on which both configurations have it."""
    protocol, out = read_protocol(), tmp_path / "runs"
    write_run(out, "base", 0, 0.90, device="cuda")
    write_run(out, "se", 0, 0.80, device="cpu")
    assert compare(protocol.experiments["attentions"], read_results(protocol, out)) == []
    write_run(out, "se", 0, 0.89, device="cuda")
    write_run(out, "base", 0, 0.86, device="cpu")
    write_run(out, "se", 1, 0.5, device="cpu")
    results = read_results(protocol, out)
    (found,) = compare(protocol.experiments["attentions"], results)
    assert (found.estimate.n, found.estimate.mean) == (1, pytest.approx((0.01 + 0.06) / 2))
    assert results.top1("se") == {0: pytest.approx(0.845), 1: 0.5}
    (tmp_path / "experiments.md").write_text("\n".join(MARKS))
    text = publish(protocol, out, tmp_path).read_text()
    assert f"3 of {5 * len(protocol.configurations)} runs have results" in text  # by configuration and seed
    assert re.search(r"\| se \| 2 \| 67.25 \(.*?\) \| -3.50, n = 1 \|", text)


def test_runs_of_other_epochs_and_pages_without_marks_are_refused(published):
    protocol, out, _, folder = published
    (folder / "experiments.md").write_text("nothing")
    with pytest.raises(InputError, match="has no lines <!-- results -->"):
        publish(protocol, out, folder)
    write_run(out, "se", 0, 0.9, epochs=9)
    with pytest.raises(InputError, match="has runs of several learning rates or epochs"):
        read_results(protocol, out)
    (out / RESULTS).unlink()
    (out / "costs.json").write_text("{")
    with pytest.raises(InputError, match=r"costs\.json: is damaged .* run the command costs"):
        read_results(protocol, out)


def test_the_page_has_the_numbers_of_the_results():
    page = (PROTOCOL.parents[1] / "docs" / "experiments.md").read_text()
    assert to_markdown(read_protocol(), read_results(read_protocol(), PROTOCOL.parent / "results" / "claims")) in page
