"""Published accuracies of the family and of its FasterNet counterparts."""

__all__ = ["PUBLISHED"]

PUBLISHED: dict[str, float] = {
    "patnet_t0": 73.9,
    "patnet_t1": 78.1,
    "patnet_t2": 80.2,
    "patnet_s": 82.1,
    "patnet_m": 83.1,
    "patnet_l": 83.9,
    "fasternet_t0": 71.9,
    "fasternet_t1": 76.2,
    "fasternet_t2": 78.9,
    "fasternet_s": 81.3,
    "fasternet_m": 83.0,
    "fasternet_l": 83.5,
}
"""Top-1 accuracy on ImageNet-1K in %, at 224 px, by model name; none of them was measured here.

PATNet: read to 0.1 from the accuracy-throughput figure in the authors' repository (haiduo/PartialNet,
`images/acc_throughput.png`, commit 679cfc0; its labels M and L are swapped). T2 is also in the abstract of
arXiv 2503.03148. FasterNet: arXiv 2303.03667, table of ImageNet-1K results.
"""
