"""The synthetic tasks hide what they say they hide; runs resume, and answers follow from the numbers."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from fit import Images
from hypothesis import given, settings
from hypothesis import strategies as st
from mechanisms import gaussian, report, run, tasks
from mechanisms.networks import Probe, Small
from mechanisms.protocol import PROTOCOL, TESTS, Claim
from mechanisms.training import Run, train
from paired import Estimate
from pool import RESULTS, missing, read
from report import MARKS
from scipy.stats import norm

from patnet import PATNet, save_checkpoint
from patnet.cli import main
from patnet.nn import CHANNEL_ATTENTIONS


def levels():
    """A level of each task that is an image's."""
    return [(task, test.test[0] if test.train else 8) for test in TESTS.values() for task in test.tasks]


@pytest.mark.parametrize(("task", "level"), levels())
def test_labels_are_balanced_and_a_seed_gives_the_same_images(task, level):
    x, y = tasks.TASKS[task](np.random.default_rng(3), 600, level)
    again, _ = tasks.TASKS[task](np.random.default_rng(3), 600, level)
    assert torch.equal(x, again)
    assert not torch.equal(x, tasks.TASKS[task](np.random.default_rng(4), 600, level)[0])
    assert len(x) == len(y) == 600
    assert ((y.mean(0) - 0.5).abs() < 0.1).all()


@settings(max_examples=15)
@given(st.sampled_from(["std", "skewness", "kurtosis", "arrangement"]), st.floats(0.1, 3), st.integers(0, 99))
def test_textures_have_equal_means_and_differ_in_what_their_content_says(content, level, seed):
    x, _ = tasks.textures(np.random.default_rng(seed), 20, level, content)
    assert x.mean((2, 3)).numpy() == pytest.approx(1, abs=1e-5)
    if content != "std":
        assert x.std((2, 3)).numpy() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("content", ["mean", "std", "skewness", "kurtosis"])
def test_a_texture_s_statistic_tells_its_class(content):
    x, y = tasks.textures(np.random.default_rng(0), 200, 3.0, content)
    z = (x - x.mean((2, 3), keepdim=True)) / x.std((2, 3), keepdim=True)
    statistics = {"mean": x, "std": (x - 1).square(), "skewness": z**3, "kurtosis": z**4}
    found = statistics[content][:, 2:].mean((1, 2, 3))
    assert found[y[:, 0] == 1].min() > found[y[:, 0] == 0].max()


@pytest.mark.parametrize("test", [test for test in TESTS.values() if test.ceiling])
def test_the_highest_possible_accuracy_is_that_of_six_maps(test):
    assert set(test.ceiling) == set(test.test)
    assert test.ceiling == pytest.approx({level: norm.cdf(6**0.5 * level) for level in test.ceiling}, abs=1e-3)


@pytest.mark.parametrize(
    ("gate", "content", "separates"),
    [
        ("none", "std", False),
        ("mean", "std", False),
        ("gaussian", "std", True),
        ("quantile", "std", True),
        ("gaussian", "skewness", False),
        ("gaussian", "kurtosis", False),
        ("gaussian", "arrangement", False),
        ("quantile", "skewness", True),
    ],
)
def test_only_what_a_gate_measures_reaches_the_readout_of_the_probe(gate, content, separates):
    """Images with equal convolved channels: the output depends on the others only by what the gate reads of them."""
    assert gate in CHANNEL_ATTENTIONS
    probe = Probe(8, 1, gate)
    for parameter in probe.parameters():
        torch.nn.init.normal_(parameter)
    x, y = tasks.textures(np.random.default_rng(0), 60, 3.0, content)
    x[:, :2] = x[:1, :2]
    outputs = probe(x)[:, 0]
    if separates:
        assert (outputs[y[:, 0] == 1].mean() - outputs[y[:, 0] == 0].mean()).abs() > 1e-2
    else:
        assert outputs.std() < 1e-2


def test_no_small_part_of_a_pair_tells_its_label():
    """The multiset of the parts of 16x16 px around each square is that of the other label, up to where they are."""
    for seed in range(20):
        x, y = tasks.pairs(np.random.default_rng(seed), 1, 24)
        place = x[0, :2].nonzero()
        assert len(place) == 4 * 4
        rows, columns = place[:, 1].unique(), place[:, 2].unique()
        assert (len(rows), len(columns)) == (4, 4)
        assert rows[2] - rows[1] > 14
        assert columns[2] - columns[1] > 14
        assert rows[0] % 4 == rows[2] % 4
        assert rows[0] >= 16
        assert rows[-1] < 56 - 16
        upper = [int(x[0, :2, rows[0], column].argmax()) for column in (columns[0], columns[2])]
        assert (upper[0] == upper[1]) == bool(y[0, 0])
    assert x[0].sum() == 16


def test_the_distance_of_the_marks_does_not_tell_whether_a_path_connects_them():
    for length in (3, 8):  # in particular, its parity is that of the path for both labels
        x, y = tasks.paths(np.random.default_rng(1), 200, length)
        marks = [image[1].nonzero() for image in x]
        distance = torch.stack([(m.max(0)[0] - m.min(0)[0] - 1).sum() for m in marks]) // 2
        assert {int(d) % 2 for d in distance} == {(length - 1) % 2}
    x, y = tasks.paths(np.random.default_rng(0), 400, 8)
    assert (x[:, 0].sum((1, 2)) == 2 * 8 * 4).all()  # no squares coincide
    marks = [image[1].nonzero().float() for image in x]
    distance = np.array([(m.max(0)[0] - m.min(0)[0]).sum().item() for m in marks])
    label = y[:, 0].numpy() == 1
    assert abs(distance[label].mean() - distance[~label].mean()) < 1.5
    connected = []
    for image in x[:50]:  # squares of one path are those that a walk from a mark reaches
        grid = image[:2, ::2, ::2]
        todo = [tuple(place) for place in grid[1].nonzero().tolist()][:1]
        seen = set(todo)
        while todo:
            r, c = todo.pop()
            for place in ((r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1)):
                if place not in seen and min(place) >= 0 and max(place) < 16 and grid[0][place]:
                    seen.add(place)
                    todo.append(place)
        assert len(seen) == 8
        connected.append(all(tuple(place) in seen for place in grid[1].nonzero().tolist()))
    assert connected == label[:50].tolist()


@pytest.mark.parametrize("size", [32, 64])
def test_marks_are_in_the_order_that_the_label_says(size):
    x, y = tasks.marks(np.random.default_rng(0), 100, size)
    for image, label in zip(x, y, strict=True):
        red, blue = (image[i].nonzero().float().mean(0) for i in (0, 1))
        assert (red[1] < blue[1], red[0] < blue[0]) == tuple(label == 1)
        assert (red - blue).abs().max() <= 12
        assert (image[:2].nonzero()[:, 1:] - (size - 1) / 2).abs().max() < size / 2 - 4


@pytest.mark.parametrize("name", TESTS)
def test_every_form_takes_the_tasks_and_claims_name_what_exists(name):
    test = TESTS[name]
    for claim in test.claims:
        assert claim.task in test.tasks
        assert set(claim.levels) <= set(test.test)
        assert {claim.first, claim.second} - {0.5} <= set(test.forms)
    for task in test.tasks:
        x, y = tasks.TASKS[task](np.random.default_rng(0), 2, test.test[0])
        for form in test.forms:
            network = test.make(form, x.shape[1], y.shape[1], **({"width": 8} if test.widths[0] else {}))
            assert network(x).shape == y.shape


@pytest.mark.parametrize("name", ["distribution-probe", "position", "redundancy"])
def test_a_run_is_repeatable(name):
    test = TESTS[name]
    run = Run(test.tasks[0], next(iter(test.forms)), test.widths[0], 1)
    first, second = (train(test, run, 20, 32) for _ in (0, 1))
    assert first["accuracy"] == second["accuracy"]
    assert list(first["accuracy"]) == [f"{level:g}" for level in (test.test[:1] if run.width else test.test)]
    assert (first["moved"] is None) == (name != "position")


def test_a_small_network_takes_any_mixers_and_sizes():
    network = Small(3, 2, 16, ("pat_ch", "full_sf"), 2)
    assert network(torch.randn(2, 3, 24, 40)).shape == (2, 2)


def estimate(low, high, p=0.001):
    return Estimate(10, (low + high) / 2, low, high, p)


@pytest.mark.parametrize(
    ("expected", "low", "high", "p", "word"),
    [
        ("higher", 0.05, 0.09, 0.001, "seen"),
        ("higher", -0.09, -0.05, 0.001, "not seen"),
        ("higher", -0.01, 0.01, 0.9, "not seen"),
        ("higher", -0.01, 0.09, 0.09, "undecided"),
        ("higher", 0.001, 0.015, 0.01, "not seen"),
        ("equal", -0.01, 0.01, 0.9, "seen"),
        ("equal", 0.05, 0.09, 0.001, "not seen"),
        ("equal", -0.01, 0.09, 0.09, "undecided"),
    ],
)
def test_answers_follow_from_the_interval(expected, low, high, p, word):
    assert report.answer(expected, estimate(low, high), p) == word
    assert report.answer(expected, None, None) == report.answer(expected, Estimate(1, 0.1), None) == "not measured"


def test_comparisons_are_paired_by_seed_over_the_levels():
    found = {
        ("t", "a"): {0: {"1": 0.9, "2": 0.7}, 1: {"1": 0.8, "2": 0.8}, 2: {"1": 0.7}},
        ("t", "b"): {1: {"2": 0.7, "1": 0.5}, 0: {"1": 0.6, "2": 0.6}},
    }
    assert report.compare(Claim("", "t", (1, 2), "a", "higher", "b"), found)[:2] == (2, pytest.approx(0.2))
    assert report.compare(Claim("", "t", (1,), "a", "equal", 0.5), found)[:2] == (3, pytest.approx(0.3))
    assert report.compare(Claim("", "t", (1,), "a", "equal", "c"), found) is None


@pytest.mark.parametrize(("accuracy", "named"), [(0.93, True), (0.915, False)])
def test_a_form_that_surpasses_both_sides_of_a_claim_is_named(accuracy, named):
    """With its mean over the seeds that all forms have."""
    test = TESTS["distribution-network"]
    claim = next(claim for claim in test.claims if claim.task == "kurtosis")
    accuracies = {"none": accuracy, "mean": 0.8, "gaussian": 0.7, "quantile": 0.9}
    found = {("kurtosis", form): {0: {"0.4": value, "0.8": value}} for form, value in accuracies.items()}
    found["kurtosis", "none"][1] = {"0.4": 0.5, "0.8": 0.5}
    expected = "`none` with 93.0 % in kurtosis at 0.4, 0.8 (`gaussian` 70.0 %, `quantile` 90.0 %)"
    assert report.surpassed(claim, test, found) == (expected if named else "")
    assert report.surpassed(claim, test, {}) == ""
    assert report.surpassed(claim._replace(expected="equal"), test, found) == ""


@pytest.mark.parametrize(
    ("task", "moved", "still"), [("order", 0.001, True), ("order", 0.003, False), ("brightness", 0, False)]
)
def test_positions_that_did_not_move_are_named_outside_of_controls(task, moved, still):
    accuracy = dict.fromkeys(("32", "48", "64", "96"), 0.9)
    run = {"task": task, "form": "product bias", "seed": 0, "width": 0, "accuracy": accuracy, "moved": moved}
    text = "\n".join(report.section("position", [{**run, "seconds": 1.0}]))
    assert ("did not move from 0 in some run: product bias." in text) == still


@pytest.mark.parametrize(("control", "word"), [(0.6, "void"), (0.9, "seen")])
def test_sizes_at_which_no_form_solves_the_control_tell_nothing(control, word):
    test, runs = TESTS["position"], []
    claim = next(claim for claim in test.claims if claim.levels == [48, 64, 96] and claim.expected == "higher")
    for seed in range(3):
        for form in test.forms:
            order = dict.fromkeys(("32", "48", "64", "96"), 0.9 + 0.01 * seed if form == claim.first else 0.6)
            common = {"form": form, "seed": seed, "width": 0, "moved": None}
            runs.append({**common, "task": "order", "accuracy": order})
            runs.append({**common, "task": "brightness", "accuracy": {**order, "64": control}})
    found = {claim.text: answer for claim, _, _, answer in report.answers(test, runs)}
    assert found[claim.text] == word
    assert found[next(claim for claim in test.claims if claim.levels == [32]).text] == "seen"


@pytest.fixture
def tiny(monkeypatch):
    """The probe with two steps, and no other test."""
    from dataclasses import replace

    test = replace(TESTS["distribution-probe"], steps=20, tasks=("std",), claims=TESTS["distribution-probe"].claims[:1])
    for module in (run, report):
        monkeypatch.setattr(module, "TESTS", {"probe": test})
        monkeypatch.setattr(module, "SEEDS", (0, 1))

    def finish(jobs, processes):
        for job in jobs:
            if missing([job.run], job.store):
                result = job.work(*job.arguments)
                with job.store.open("a") as file:
                    file.write(json.dumps(result) + "\n")
        return 0

    monkeypatch.setattr(run, "finish", finish)


def test_the_command_resumes_refuses_another_protocol_and_reports(tmp_path, tiny, monkeypatch, capsys):
    out, page = tmp_path / "runs", tmp_path / "docs" / "mechanisms.md"
    assert main(["probe", "--out", str(out)], run) == 0
    store = out / "probe" / RESULTS
    first = store.read_text().splitlines(keepends=True)
    assert len(first) == 2 * 4
    store.write_text("".join(first[:-1]))
    assert main(["probe", "--out", str(out), "--plan"], run) == 0
    assert "7 of 8 runs done" in capsys.readouterr().out
    assert main(["all", "--out", str(out)], run) == 0
    assert store.read_text().startswith("".join(first[:-1]))
    assert len(store.read_text().splitlines()) == 8
    page.parent.mkdir()
    page.write_text("\n".join(MARKS))
    assert main(["report", "--out", str(out), "--page", str(page)], run) == 0
    text = page.read_text()
    assert "8 of 8 runs" in text
    assert (page.parent / "mechanisms" / "probe.png").exists()
    monkeypatch.setattr(run, "BATCH_SIZE", 7)
    for name in ("probe", "report"):
        assert main([name, "--out", str(out)], run) == 2
        assert "batch_size was 32 and is 7" in capsys.readouterr().err
    assert main(["probe", "prob", "--out", str(tmp_path / "none")], run) == 2
    assert "prob: there are probe" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    assert main(["probe", "--page", "x.md"], run) == 2
    assert "--page: belongs to report" in capsys.readouterr().err


@pytest.mark.parametrize("name", TESTS)
def test_the_page_has_the_numbers_of_the_results(name):
    page = PROTOCOL.parents[2] / "docs" / "experiments" / "mechanisms.md"
    runs = read(PROTOCOL.parents[1] / "results" / name / RESULTS)
    assert "\n".join(report.section(name, runs)) in page.read_text()


def test_distances_from_normal_are_those_of_smooth_fields_for_normal_maps_only():
    z = torch.from_numpy(tasks._smooth(np.random.default_rng(0), 200, 3, 12, 12))
    maps = torch.cat((z, torch.relu(z), z.sinh()), dim=1)
    found = gaussian.distances(maps)
    assert max(found["network"][:3]) < 0.03
    assert max(found["smooth normal"]) < 0.03
    assert min(found["network"][3:]) > 0.1


def test_the_profit_of_a_channel_is_the_loss_without_its_std():
    network = PATNet(1, 3, embed_dim=8, depths=(1, 1, 1, 1), num_heads=1, feature_dim=16, act_layer="gelu").eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    images, labels = torch.randn(40, 1, 64, 64) * torch.rand(40, 1, 1, 1), torch.randint(0, 3, (40,))
    with torch.inference_mode():
        result = gaussian.analyse(network, images, labels)
    layers = [layer for layer in result["layers"] if layer["point"] == gaussian.POINTS[0]]
    assert [layer["label"] for layer in layers] == ["1.1", "2.1", "3.1"]
    assert all(np.abs(layer["profit"]).max() > 1e-4 for layer in layers[:1])
    block = network.stages[0].blocks[0].mixer  # without weights of the std, nothing is lost
    with torch.no_grad():
        block.attn.mix.weight[..., 1] = 0
    again = gaussian.analyse(network, images, labels)
    assert again["layers"][0]["profit"] == pytest.approx([0] * 6)


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_correlation_is_within_layers(sign):
    rng = np.random.default_rng(0)
    distance = rng.random((2, 40))
    layers = [
        {"point": "untouched", "network": (d + 9 * i).tolist(), "profit": (sign * d - 50 * sign * i).tolist()}
        for i, d in enumerate(distance)
    ]
    value, low, high = gaussian.correlation(layers)
    assert value == pytest.approx(sign)
    assert low <= value <= high + 1e-9


def test_networks_that_are_missing_are_named(tmp_path, monkeypatch, capsys):
    some = torch.rand(10, 1, 28, 28), torch.zeros(10, dtype=torch.long)
    monkeypatch.setattr(gaussian, "open_images", lambda *_: (None, Images(*some)))
    monkeypatch.chdir(tmp_path)
    assert main(["none/seed-0", "--page", "gaussian.md"], gaussian) == 2
    assert "none/seed-0" in capsys.readouterr().err
    save_checkpoint(timm.create_model("patnet_t0", embed_dim=8, num_heads=1), Path("colour"))
    assert main(["colour", "--page", "gaussian.md"], gaussian) == 2
    assert "colour: takes colour images" in capsys.readouterr().err


def test_the_page_on_normality_has_the_answer_and_figures(tmp_path):
    network = PATNet(1, 3, embed_dim=8, depths=(1, 1, 1, 1), num_heads=1, feature_dim=16).eval()
    result = gaussian.analyse(network, torch.randn(20, 1, 64, 64), torch.zeros(20, dtype=torch.long))
    gaussian.publish({"some": result}, tmp_path / "gaussian.md")
    text = (tmp_path / "gaussian.md").read_text()
    assert (
        "The values of the untouched channels are about normal: in the median of the channels they are" in text
    )  # random weights
    assert re.search(
        r"^\| some \(\w+\) \| \d+\.\d \|( \d\.\d{3} \|){4} [+-]\d\.\d\d \(.*\) \| -?\d\.\d{5} \|", text, re.M
    )
    for name in ("normality", "profit"):
        assert (tmp_path / "mechanisms" / f"gaussian-{name}.png").exists()
