"""`python -m patnet.benchmark`: what `patnet bench` does, where there is nothing but PyTorch and timm."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from ..errors import InputError
from . import Options, measure, write
from .write import check_folder


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write; give the exit code: 0, 2 for bad input, 130 after Ctrl-C."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m patnet.benchmark", description=__doc__, allow_abbrev=False)
    parser.add_argument("models", nargs="*", help="Names as timm knows them; by default the PATNets and FasterNets.")
    parser.add_argument("--gpu", action="store_true", help="Measure on the GPU.")
    parser.add_argument("--peers", action="store_true", help="Add models of other families.")
    parser.add_argument("--forms", nargs="+", default=[], help="fused, trained.")
    parser.add_argument("--runtimes", nargs="+", default=[], help="eager, compile.")
    parser.add_argument("--precision", nargs="+", default=[], help="fp32, tf32, bf16, fp16.")
    parser.add_argument("--batch", nargs="+", type=int, default=[], help="Pictures in a batch.")
    parser.add_argument("--size", nargs="+", type=int, default=[], help="Side of the pictures, px.")
    parser.add_argument("--memory-formats", nargs="+", default=["contiguous"], help="contiguous, channels_last.")
    parser.add_argument("--threads", nargs="+", type=int, default=[1], help="CPU threads.")
    parser.add_argument("--minutes", type=float, help="Measure no longer than this.")
    parser.add_argument("--seconds", type=float, help="That a comparison takes; 2, on a GPU 0.5.")
    parser.add_argument("--out", default="runs/bench", help="Folder for the files.")
    parser.add_argument("--name", help="Of the files; benchmarks, on a GPU benchmarks-gpu.")
    options = vars(parser.parse_args(argv))
    gpu, out = options.pop("gpu"), Path(options.pop("out"))
    options["seconds"] = options["seconds"] or (0.5 if gpu else 2.0)
    name = options.pop("name") or ("benchmarks-gpu" if gpu else "benchmarks")
    try:
        plan = Options(**options, device="cuda" if gpu else "cpu")
        plan.checked()
        check_folder(out)
        command = shlex.join(["python", "-m", "patnet.benchmark", *argv])
        result = measure(plan, lambda line: print(line, file=sys.stderr, flush=True), command)
        files = write(result.as_dict(), out, name)
    except InputError as error:
        print(f"patnet: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("patnet: interrupted", file=sys.stderr)
        return 130
    print("\n".join(map(str, files)))
    if find_spec("matplotlib") is None:
        print(f"no picture, for matplotlib is not installed; elsewhere: patnet bench --redraw {files[0]} --out {out}")
    return 130 if result.incomplete == "interrupted" else 0


if __name__ == "__main__":
    sys.exit(main())
