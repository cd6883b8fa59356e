from patnet.detection.evaluation_time import measure_evaluation


def test_both_libraries_are_timed_and_agree():
    measured = measure_evaluation(pictures=6, detections=20, classes=3, compare=True)
    assert measured["seconds"] == measured["box"]["seconds"] + measured["mask"]["seconds"] > 0
    for kind in ("box", "mask"):
        assert 0 < measured[kind]["AP"] < 1
        assert measured[kind]["largest_difference"] < 1e-6
        assert measured[kind]["pycocotools_seconds"] > 0
