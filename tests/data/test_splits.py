from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from patnet.data import stratified_split

labels = st.lists(st.integers(0, 4), min_size=1, max_size=200)


@given(labels=labels, fraction=st.floats(0, 0.99), seed=st.integers(0, 2**31))
def test_every_label_gives_its_share(labels, fraction, seed):
    large, small = stratified_split(labels, fraction, seed)
    assert sorted(large + small) == list(range(len(labels)))
    assert len(small) == round(fraction * len(labels))
    taken = Counter(labels[i] for i in small)
    for label, count in Counter(labels).items():
        assert abs(taken[label] - fraction * count) <= 2


def test_the_seed_decides():
    labels = [0, 1] * 50
    assert stratified_split(labels, 0.3, 1) == stratified_split(labels, 0.3, 1)
    assert stratified_split(labels, 0.3, 1) != stratified_split(labels, 0.3, 2)
