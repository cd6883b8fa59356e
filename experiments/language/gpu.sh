#!/bin/sh
# All runs of the protocol on one GPU; resumes. Run in the root of the repository.
# PYTHON is one with torch, timm, numpy and patnet (or PYTHONPATH=src). Other arguments go to each `lm.py train`.
set -u
lm="${PYTHON:-python3} experiments/language/lm.py train"
trial=$(mktemp -d)
# A step replayed as a CUDA graph must compute what it computes otherwise: the losses of a short run are compared.
$lm search --trial --device cuda --together 4 --out "$trial/eager" --threads 1 &
$lm search --trial --device cuda --together 4 --out "$trial/graphs" --threads 1 --graphs
wait
if "${PYTHON:-python3}" - "$trial" <<'P'
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
names = [path.name for path in (folder / "eager").glob("*.json")]
losses = [[json.loads((folder / kind / name).read_text())["losses"] for name in names] for kind in ("eager", "graphs")]
differences = [abs(a - b) for x, y in zip(*losses) for a, b in zip(x, y)]
mean = sum(differences) / len(differences)  # a rounding error can change Adam's first steps a little
print(f"CUDA graphs: {len(names)} runs, losses differ by {mean:.2g} on average, at most by {max(differences):.2g}")
sys.exit(not (len(names) == 20 and mean < 0.02))
P
then mode="--graphs --workers 3 --together 4"; else mode="--workers 12"; fi
echo "Runs: $mode"
$lm search small 30m medium large --device cuda --threads 1 $mode "$@"
