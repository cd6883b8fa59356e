"""The mean accuracy of runs, of the files that `patnet evaluate` writes."""

import json

import mean

from patnet.files import write_text


def test_one_view_and_eight_have_a_mean_each(tmp_path, capsys):
    for seed in (0, 1):
        for folder, top1 in (("evaluation-test", 0.8), ("evaluation-test-tta8", 0.9)):
            text = json.dumps({"top1": top1 + 0.02 * seed, "images": 50})
            write_text(tmp_path / f"run-{seed}" / folder / "metrics.json", text)
    mean.main([str(tmp_path / f"run-{seed}") for seed in (0, 1)])
    out = capsys.readouterr().out
    assert "one view: mean 81.00 %, std 1.41 %" in out
    assert "TTA, 8 views: mean 91.00 %, std 1.41 %" in out
