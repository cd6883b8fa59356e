from itertools import pairwise

import pytest
from catalogue import EXPERIMENTS
from config import ExperimentConfig
from cost import create
from study import Study

from patnet import InputError

TINY = {"embed_dim": 16, "depths": [1, 1, 1, 1]}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_configuration_is_a_network_of_its_own(name):
    entry = EXPERIMENTS[name]
    assert entry.baseline in entry.configurations
    assert {name for c in entry.comparisons for name in c[:2]} <= set(entry.configurations)
    assert {c.expected for c in entry.comparisons} <= {"higher", "lower", "equal"}
    assert entry.claim.endswith(".")
    study = Study(name, ExperimentConfig(model_kwargs=TINY, **entry.options))
    networks = [create("patnet_t0", kwargs) for kwargs in study.networks.values()]
    described = {f"{network} {[(k, v.shape) for k, v in network.state_dict().items()]}" for network in networks}
    if name != "norms":  # the place of a norm is no module
        assert len(described) == len(networks)


def test_steps_differ_in_one_argument():
    steps = list(EXPERIMENTS["components"].configurations.values())
    assert [s["depths"] for s in steps] == [[2, 2, 8, 2]] * 4 + [[2, 2, 6, 4]] * 4
    for a, b in pairwise(steps[:4]):
        assert sum(a[key] != b[key] for key in a) == 1
    allocations = EXPERIMENTS["allocation"].configurations
    assert len(allocations) == 16
    assert allocations["sf-24"]["mixers"] == ["pat_ch", "pat_sf", "pat_ch", "pat_sf"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("componets", {}, "no experiment 'componets' .did you mean 'components'"),
        ("components", {"model_kwargs": {"partial_ratio": 0.01}}, "pconv-2282: .*none of 32 channels"),
        ("position", {"model_kwargs": {"num_heads": 5}}, "num_heads=5 does not divide"),
        ("ratio", {"model": "fasternet_t0"}, "does not take these arguments"),
        ("ratio", {"seeds": 0}, "--seeds 0: must be an integer above 0"),
        ("ratio", {"tta": 3}, "--tta 3: must be 1, 2, 4, 8"),
        ("ratio", {"devices": "4"}, "--devices 4: .*more processes"),
    ],
)
def test_options_that_cannot_be_used_are_refused(name, options, message):
    with pytest.raises(InputError, match=message):
        Study(name, ExperimentConfig(**options)).check()


def test_runs_have_the_options_and_their_own_network():
    study = Study("ratio", ExperimentConfig(out="nowhere", model_kwargs={"embed_dim": 16}, seed=5, seeds=2))
    run = study.run_config("1-2", 6)
    assert list(study.seeds) == [5, 6]
    assert (run.seed, run.cache_size, run.out) == (6, 64, "nowhere/runs/1-2/seed-6")
    assert run.model_kwargs == {"embed_dim": 16, "partial_ratio": 0.5}
    assert Study("ratio", ExperimentConfig(data="images/")).run_config("1-2", 0).cache_size is None
