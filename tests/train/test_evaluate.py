import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import IterableDataset, Subset

from patnet.data import PictureFiles
from patnet.train.evaluate import _draw_mistakes, _Evaluated, summarise


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


def test_the_worst_mistakes_of_any_kind_of_data_set_are_drawn(photos, tmp_path):
    probs = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]])
    truth = torch.tensor([1, 1, 0])
    files = PictureFiles([(file, 0) for file in sorted(photos(a=3).rglob("*.png"))], "RGB")

    class Streamed(IterableDataset):
        def __iter__(self):
            return iter([files[i] for i in range(3)])

    for dataset in (files, Subset(files, range(3)), Streamed()):
        file = tmp_path / f"{type(dataset).__name__}.png"
        _draw_mistakes(dataset, probs, truth, ["a", "b"], file)
        assert file.stat().st_size > 10_000
    _draw_mistakes(files, probs, torch.tensor([0, 1, 1]), ["a", "b"], tmp_path / "none.png")
    assert (tmp_path / "none.png").is_file()


def test_a_single_picture_is_evaluated_too():
    module = _Evaluated(torch.nn.Identity())
    module.metric.update(torch.tensor([[0.25, 0.75]]), torch.tensor([1]), torch.tensor([0]))
    module.on_predict_epoch_end()
    result = summarise(module.probs, module.labels, ["a", "b"])
    assert (result["pictures"], result["top1"]) == (1, 1.0)
