"""What the protocol asks for, and that a changed one is refused."""

import json

import pytest
import yaml
from pool import fix
from protocol import PROTOCOL, read_protocol

from patnet import InputError


def changed(tmp_path, change):
    content = yaml.safe_load(PROTOCOL.read_text())
    change(content)
    file = tmp_path / "changed.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def test_every_configuration_is_a_network_of_its_own_with_3x3_positions():
    protocol = read_protocol()
    assert protocol.img_size // 32 >= 3
    networks = {name: protocol.network(name, device="meta") for name in protocol.configurations}
    described = {f"{n} {[(key, value.shape) for key, value in n.state_dict().items()]}" for n in networks.values()}
    assert len(described) == len(networks)


def test_every_configuration_is_compared_and_each_comparison_has_both_its_runs():
    protocol = read_protocol()
    used = set()
    for experiment in protocol.experiments.values():
        assert experiment.baseline in experiment.configurations
        used |= {*experiment.configurations}
        for claim in experiment.claims:
            assert {claim.configuration, claim.baseline} <= {*experiment.configurations}
        pairs = [frozenset((claim.configuration, claim.baseline)) for claim in experiment.claims]
        assert len(pairs) == len(set(pairs))
    assert used == {*protocol.configurations}
    assert sum(len(experiment.claims) for experiment in protocol.experiments.values()) >= 14


def test_runs_are_shared_and_complete_experiments_come_first():
    protocol = read_protocol()
    runs = protocol.runs(0.004, 4, "cuda")
    seeds = sum(map(len, protocol.seeds))
    assert len(runs) == len(set(runs)) == seeds * len(protocol.configurations)
    done = set()
    first = next(iter(protocol.experiments.values()))
    wanted = {(c, seed) for c in first.configurations for seed in protocol.seeds[0]}
    for run in runs[: len(wanted)]:
        done.add((run.configuration, run.seed))
    assert done == wanted
    early = {run.seed for run in runs[: len(protocol.seeds[0]) * len(protocol.configurations)]}
    assert early == set(protocol.seeds[0])
    assert not {*runs} & {*protocol.search_runs("cuda")}
    assert not {*runs} & {*protocol.runs(0.004, 4, "cpu")}


def test_a_protocol_changed_after_the_first_run_is_refused_by_name(tmp_path):
    store, protocol = tmp_path / "results.jsonl", {"seeds": [0, 1], "test": {"margin": 0.003}}
    fix(protocol, store)
    fix({**protocol, "test": {"margin": 0.01}}, store)
    fix(protocol, store)
    store.write_text("{}\n")
    fix(protocol, store)
    with pytest.raises(InputError, match=r"after the first run .*test.margin was 0.003 and is 0.01"):
        fix({**protocol, "test": {"margin": 0.01}}, store)
    with pytest.raises(InputError, match=r"steps was absent and is 32"):
        fix({**protocol, "steps": 32}, store)
    assert json.loads((tmp_path / "protocol.json").read_text()) == protocol
    (tmp_path / "protocol.json").unlink()
    with pytest.raises(InputError, match="cannot be read, but there are runs"):
        fix(protocol, store)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["experiments"]["ratio"]["configurations"].append("bse"), "ratio names 'bse'.*did you mean 'base'"),
        (lambda c: c["experiments"]["ratio"]["claims"][0].__setitem__(1, "better"), "'better' in ratio is neither"),
        (lambda c: c.pop("search"), "is no protocol with the entries"),
        (lambda c: c["search"].pop("lr"), "is no protocol with the entries"),
        (lambda c: c["search"].update(configuration="bas"), "has no configuration 'bas'.*did you mean 'base'"),
        (lambda c: c["configurations"].pop("base"), "has no configuration 'base'"),
        (lambda c: c.update(lr=1), "is no protocol with the entries"),
        (lambda c: c["experiments"]["ratio"]["claims"].append([1]), "is no protocol with the entries"),
    ],
)
def test_other_protocols_are_refused(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        read_protocol(changed(tmp_path, change))


def test_a_protocol_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "protocol.yaml").write_bytes(b"\xff\x00")
    with pytest.raises(InputError, match="is no protocol with the entries"):
        read_protocol(tmp_path / "protocol.yaml")


def test_a_configuration_that_is_no_network_is_named(tmp_path):
    protocol = read_protocol(changed(tmp_path, lambda c: c["configurations"]["se"].update(channel_attn="see")))
    with pytest.raises(InputError, match=r"configuration se: .*see"):
        protocol.network("se")
