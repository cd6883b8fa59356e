"""Measure `patnet predict --out` in one process and on Ray: rate, memory, time to the first file, what kills do.

The images are ELPV's solar cells, repeated under other names by hard links, and the cluster is Ray's simulated one,
with its nodes on this machine:

    python benchmarks/scale.py RUN --images 10000 --engines local ray
    python benchmarks/scale.py RUN --images 10000 --nodes 2 --engines ray --kills 20
    python benchmarks/scale.py RUN --rates
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import torch

from patnet import InputError, fuse, load
from patnet.data import eval_transform
from patnet.data.elpv import solar_cells
from patnet.data.images import normalise
from patnet.data.sources import Reader, chunks
from patnet.deploy import prepare
from patnet.files import write_text


def link_images(folder: Path, count: int) -> Path:
    """A folder with `count` images, a thousand in each folder of it."""
    cells = solar_cells()
    for i in range(count):
        path = folder / f"{i // 1000:04d}" / f"{i % 1000:03d}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(cells[i % len(cells)].path, path)
            except OSError:  # on another file system
                path.write_bytes(cells[i % len(cells)].path.read_bytes())
    return folder


def start_cluster(nodes: int) -> Any:
    """Ray's simulated cluster; the first node, of the driver, has no CPUs."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
    os.environ |= {"RAY_idle_worker_killing_time_threshold_ms": "600000"}  # as docs/guides/scale.md advises
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 3e8})
    for _ in range(nodes):
        cluster.add_node(num_cpus=1, object_store_memory=3e8)
    return cluster


def watch(process: subprocess.Popen, out: Path, found: dict[str, float]) -> None:
    """Note the time of the first file, the images in it, and the peak memory of a command."""
    start = time.monotonic()
    while process.poll() is None:
        if "first_s" not in found and (files := list(out.glob("part-*.parquet"))):
            found["first_s"] = time.monotonic() - start
            found["first_images"] = sum(pq.read_metadata(file).num_rows for file in files)
        with suppress(OSError, IndexError):  # it has ended
            status = Path(f"/proc/{process.pid}/status").read_text()
            found["peak_mb"] = int(status.partition("VmHWM:")[2].split()[0]) / 1024
        time.sleep(0.2)
    found["total_s"] = time.monotonic() - start


def kill_one(process: subprocess.Popen, cluster: Any, rng: random.Random) -> str:
    """Kill a worker, a node, or the command itself, without warning."""
    what = rng.choice(["worker", "worker", "node", "driver"])
    if what == "driver":
        process.kill()
    elif what == "node":
        cluster.remove_node(rng.choice([n for n in cluster.list_all_nodes() if not n.head]), allow_graceful=False)
        cluster.add_node(num_cpus=1, object_store_memory=3e8)
    else:
        found = psutil.Process().children(recursive=True)
        workers = [p for p in found if " ".join(p.cmdline()).startswith(("ray::Map", "ray::IDLE"))]
        if workers:
            os.kill(rng.choice(workers).pid, signal.SIGKILL)
    return what


def measure(args: argparse.Namespace, engine: str, images: Path, cluster: Any) -> dict[str, Any]:
    """Run the command, again as often as it is killed; what was measured, and the rows of its files."""
    out = args.work / f"answers-{engine}-{args.images}-{args.kills}"
    shutil.rmtree(out, ignore_errors=True)  # the command would resume
    command = [sys.executable, "-m", "patnet", "predict", args.run, str(images), "--out", str(out)]
    command += ["--accelerator", "cpu", "--engine", engine, *args.options]
    command += ["--workers", "2"] if engine == "local" else ["--ray-address", cluster.address] if cluster else []
    rng, kills, found = random.Random(args.seed), [], {}
    while True:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        watcher = threading.Thread(target=watch, args=(process, out, found))
        watcher.start()
        while engine == "ray" and len(kills) < args.kills and process.poll() is None:
            time.sleep(rng.uniform(5, 25))
            if process.poll() is None:
                kills.append(kill_one(process, cluster, rng))
                print(f"  killed: {kills[-1]}", flush=True)
        watcher.join()
        if process.returncode == 0:
            break
        if process.returncode != -signal.SIGKILL:
            sys.exit(f"{command} ended with code {process.returncode}")
    rows = pq.read_table(out, columns=["path", "label", "probability", "error"]).to_pylist()
    rate = (args.images - found.pop("first_images")) / (found["total_s"] - found["first_s"])  # without the start
    result = {"engine": engine, "images": args.images, "rows": len(rows), "once": len({r["path"] for r in rows})}
    result |= {"images_per_s": round(rate, 1)} if not kills else {"kills": kills}
    result |= {name: round(value, 1) for name, value in found.items()}
    result["bytes_per_image"] = round(sum(f.stat().st_size for f in out.glob("*.parquet")) / args.images)
    print(json.dumps(result), flush=True)
    result["answers"] = {row["path"]: (row["label"], row["probability"], row["error"]) for row in rows}
    return result


def measure_rates(run: str, images: Path, count: int = 1280, size: int = 64) -> None:
    """Print how many images one core reads, and computes in each backend, in a second of its time; and their bytes."""
    torch.set_num_threads(1)
    loaded = load(run)
    mode = "L" if loaded.data_config["input_size"][0] == 1 else "RGB"
    reader = Reader(eval_transform(loaded.data_config, normalise=False), mode, size)
    found = list(islice(chunks([str(images)], size), count // size))
    start = time.process_time()
    batches = [batch for chunk in found for batch in reader(chunk.names)]
    rates = {"read": count / (time.process_time() - start)}
    fused, example = fuse(loaded.model), normalise(batches[0]["pixels"], loaded.data_config)
    for backend in ("eager", "fused", "onnx", "openvino", "executorch"):
        named = "eager" if backend == "fused" else backend
        call = prepare(loaded.model if backend == "eager" else fused, example, backend=named, threads=1)
        call(example)
        start = time.process_time()
        for batch in batches:
            call(normalise(batch["pixels"], loaded.data_config))
        rates[backend] = count / (time.process_time() - start)
    file_bytes = sum(Path(name).stat().st_size for chunk in found for name in chunk.names) / count
    print(json.dumps({name: round(rate) for name, rate in rates.items()} | {"bytes_read": round(file_bytes)}))


def main() -> None:
    """Measure each engine, and compare their answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--images", type=int, default=10_000, help="at least 2048, of two files of predictions")
    parser.add_argument("--engines", nargs="+", default=["local", "ray"])
    parser.add_argument("--nodes", type=int, default=0, help="nodes of a simulated cluster; 0: Ray starts by itself")
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--rates", action="store_true", help="measure parts in this process, and nothing else")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/scale"))
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="options of patnet predict, the last")
    args = parser.parse_args()
    if args.images < 2048:
        parser.error(f"--images {args.images}: must be at least 2048")
    images = link_images(args.work / f"images-{args.images}", args.images)
    if args.rates:
        measure_rates(args.run, images)
        return
    cluster = start_cluster(args.nodes) if args.nodes else None
    results = [measure(args, engine, images, cluster) for engine in args.engines]
    answers = [result.pop("answers") for result in results]
    for other in answers[1:]:
        assert other.keys() == answers[0].keys()
        pairs = [(answers[0][path], other[path]) for path in other]
        results[-1]["same_class"] = sum(a[0] == b[0] for a, b in pairs) / len(pairs)
        results[-1]["largest_difference"] = max(abs((a[1] or 0) - (b[1] or 0)) for a, b in pairs)
        print({name: results[-1][name] for name in ("same_class", "largest_difference")})
    if args.out:
        write_text(args.out, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(f"patnet: {error}", file=sys.stderr)
        sys.exit(2)
