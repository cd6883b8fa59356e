"""`patnet detect`: detection and instance segmentation."""

from types import ModuleType

from . import bench, evaluate, export, predict, train

DESCRIPTION = "Find objects in pictures: train detectors, evaluate and use them."
EPILOG = """Examples:
  patnet detect train --data panels --out runs/panels --backbone patnet_t0
  patnet detect evaluate runs/panels
  patnet detect predict runs/panels photo.jpg
  patnet detect export runs/panels photos/ --size 400 480 --out panels.onnx
  patnet detect bench --backbone_only

patnet detect ACTION --help shows the options of an action, with examples."""

# The actions, each with DESCRIPTION, EPILOG, add_arguments and run as a command has them.
ACTIONS: dict[str, ModuleType] = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "export": export,
    "bench": bench,
}
