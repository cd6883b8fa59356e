from itertools import pairwise

import pytest

from patnet import InputError
from patnet.experiments import EXPERIMENTS, ExperimentConfig
from patnet.experiments.catalogue import experiment


def config(**options):
    return ExperimentConfig.from_options({"out": "nowhere", "in_chans": 3, **options})


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_configuration_is_a_network(name):
    entry = experiment(name)
    names = [c.name for c in entry.configurations]
    assert len(set(names)) == len(names)
    assert entry.baseline in names
    assert {name for c in entry.comparisons for name in c[:2]} <= set(names)
    assert {c.paper for c in entry.comparisons} <= {"more", "less", "as"}
    assert entry.claim.endswith(".")
    config(experiment=name, model_args={"depths": [1, 1, 1, 1]}).check()


def test_steps_differ_in_one_thing():
    steps = [c.model_args for c in experiment("components").configurations]
    assert [s["depths"] for s in steps] == [[2, 2, 8, 2]] * 4 + [[2, 2, 6, 4]] * 4
    for a, b in pairwise(steps[:4]):
        assert sum(a[key] != b[key] for key in a) == 1
    assert len(experiment("allocation").configurations) == 16


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"experiment": "componets"}, "no experiment 'componets' .did you mean 'components'"),
        (
            {"experiment": "components", "model_args": {"partial_ratio": 0.01}},
            "pconv-2282: .*leaves none of 32 channels",
        ),
        ({"experiment": "position", "model_args": {"num_heads": 5}}, "num_heads=5 does not divide the 192"),
        ({"experiment": "ratio", "model": "fasternet_t0"}, "does not take these options"),
        ({"experiment": "ratio", "seeds": 0}, "--seeds 0"),
        ({"experiment": "ratio", "views": 3}, "--views 3"),
        ({"experiment": "ratio", "devices": "4"}, "--devices 4: .*further processes"),
    ],
)
def test_what_cannot_be_tried_is_one_sentence(options, said):
    with pytest.raises(InputError, match=said):
        config(**options).check()


def test_runs_take_the_options_and_their_own_network():
    given = config(experiment="ratio", data="elpv", model_args={"embed_dim": 16}, seed=5, seeds=2)
    variant = given.variants()["1-2"]
    assert variant.model_args == {"embed_dim": 16, "partial_ratio": 0.5}
    run = given.run_config(variant, 6, "runs/x")
    assert (list(given.all_seeds), run.seed, run.cache_size, run.model_args) == ([5, 6], 6, 64, variant.model_args)
    assert config(experiment="ratio", data="photos").run_config(variant, 0, "x").cache_size is None
    assert given.differences(config(experiment="ratio", data="elpv", model_args={"embed_dim": 16}, seed=5)) == []
