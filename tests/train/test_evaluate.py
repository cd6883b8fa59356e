import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from patnet.train.evaluate import summarise


@given(classes=st.integers(2, 8), pictures=st.integers(1, 60), seed=st.integers(0, 1000))
def test_figures_are_those_of_their_definitions(classes, pictures, seed):
    generator = torch.Generator().manual_seed(seed)
    probs = (3 * torch.randn(pictures, classes, generator=generator)).softmax(1)
    labels = torch.randint(0, classes, (pictures,), generator=generator)
    result = summarise(probs, labels, [f"c{i}" for i in range(classes)])

    confidence, predicted = (t.numpy() for t in probs.max(1))
    truth = labels.numpy()
    right = predicted == truth
    assert np.isclose(result["top1"], right.mean())
    assert ("top5" in result) == (classes > 5)
    recalls = [right[truth == c].mean() for c in range(classes) if (truth == c).any()]
    assert np.isclose(result["balanced_accuracy"], np.mean(recalls))
    matrix = np.zeros((classes, classes), int)
    np.add.at(matrix, (truth, predicted), 1)
    assert result["confusion_matrix"] == matrix.tolist()
    for c in range(classes):
        row = result["per_class"][f"c{c}"]
        assert row["pictures"] == (truth == c).sum()
        precision = matrix[c, c] / max(matrix[:, c].sum(), 1)
        recall = matrix[c, c] / max(matrix[c].sum(), 1)
        assert np.isclose(row["precision"], precision, atol=1e-6)
        assert np.isclose(row["recall"], recall, atol=1e-6)
        assert np.isclose(row["f1"], 2 * precision * recall / max(precision + recall, 1e-12), atol=1e-6)
    bins = np.clip(np.floor(confidence * 15).astype(int), 0, 14)
    gaps = [
        (bins == b).mean() * abs(right[bins == b].mean() - confidence[bins == b].mean())
        for b in range(15)
        if (bins == b).any()
    ]
    assert np.isclose(result["calibration_error"], np.sum(gaps), atol=1e-4)
