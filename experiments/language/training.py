"""Train models side by side: each run leaves a file of results, and a run that has one is not trained again."""

import json
import math
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import asdict
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from corpus import Corpus, load_corpus
from gpt import GPT, GPTConfig
from grid import FAMILY, TRIAL, Budget, Job, flops, model_config, search_jobs
from torch import Tensor, nn

from patnet import InputError
from patnet.files import atomic_write, write_text

WARM_UP = 3  # steps before the capture of a CUDA graph


class Training:
    """A run in progress, in bfloat16 (autocast) on a GPU. A step reads what is on the device only, and can be captured.

    Args:
        config: The model.
        text: Tokens to train on, on the device.
        rate: Highest learning rate: linear warm-up over 5 % of the steps, cosine decay to a tenth.
        seed: Random seed of the weights and of the order of the text, the same on each device.
        budget: What the run reads.
        graphs: Replay the step as a CUDA graph.
    """

    def __init__(
        self, config: GPTConfig, text: Tensor, rate: float, seed: int, budget: Budget, graphs: bool = False
    ) -> None:
        if len(text) <= budget.context:
            raise InputError(f"{len(text)} tokens to train on; {budget.context + 1} are needed: give more text")
        self.text, self.steps, self.graphs, self.device = text, 0, graphs, text.device.type
        self.stream = torch.cuda.Stream() if self.device == "cuda" else None
        self.graph: torch.cuda.CUDAGraph | None = None
        torch.manual_seed(seed)
        model = GPT(config)
        generator = torch.Generator().manual_seed(seed)
        starts = torch.randint(len(text) - budget.context, (budget.steps, budget.batch), generator=generator)
        warm_up = max(1, budget.steps // 20)
        decay = torch.linspace(0, math.pi, budget.steps - warm_up + 1)[1:].cos() * 0.45 + 0.55
        rates = rate * torch.cat([torch.linspace(0, 1, warm_up + 1)[1:], decay])
        with self.on_stream():
            self.model, self.starts, self.rates = (x.to(self.device) for x in (model, starts, rates))
            self.span = torch.arange(budget.context + 1, device=self.device)
            self.losses = torch.zeros(budget.steps, device=self.device)
            self.done = torch.zeros(1, dtype=torch.long, device=self.device)
            self.rate = torch.zeros((), device=self.device)
            groups = [
                {"params": [p for p in self.model.parameters() if (p.ndim == 2) == matrix], "weight_decay": decayed}
                for matrix, decayed in ((True, 0.1), (False, 0.0))
            ]
            on_gpu = self.device == "cuda"
            self.optimizer = torch.optim.AdamW(groups, self.rate, (0.9, 0.95), fused=True, capturable=on_gpu)

    def on_stream(self) -> Any:
        """Kernels started inside run on this run's stream, beside those of other runs."""
        return torch.cuda.stream(self.stream) if self.stream else nullcontext()

    def step(self) -> None:
        """Do a step; on a GPU, without waiting for it."""
        with self.on_stream():
            if self.graphs and self.steps == WARM_UP:
                self.graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self.graph, stream=self.stream):  # records, computes nothing
                    self.compute()
            if self.graph:
                self.graph.replay()
            else:
                self.compute()
        self.steps += 1

    def compute(self) -> None:
        """Forward, backward, update."""
        self.rate.copy_(self.rates[self.done][0])
        tokens = self.text[self.starts[self.done].mT + self.span].long()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            logits = self.model(tokens[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.losses.index_copy_(0, self.done, loss.detach()[None])
        self.done += 1


@torch.inference_mode()
def measure_loss(model: GPT, text: Tensor, token_bytes: Tensor, budget: Budget) -> dict[str, float]:
    """Bits per byte, and perplexity of a token, over evenly spaced windows without the text before them; in float32."""
    device = next(model.parameters()).device
    windows = min(budget.windows, len(text) // (budget.context + 1))
    if windows == 0:
        raise InputError(
            f"a text of {len(text)} tokens; {budget.context + 1} are needed: give more text, and more files"
        )
    starts = torch.linspace(0, len(text) - budget.context - 1, windows, dtype=torch.float64).long()
    nats = size = 0.0
    for some in starts.split(64 if device.type == "cuda" else 8):
        tokens = text[some[:, None] + torch.arange(budget.context + 1)].long()
        targets = tokens[:, 1:].flatten()
        logits = model(tokens[:, :-1].to(device)).flatten(0, 1)
        nats += F.cross_entropy(logits, targets.to(device), reduction="sum").item()
        size += token_bytes[targets].sum().item()
    return {"bits_per_byte": nats / math.log(2) / size, "perplexity": math.exp(nats / windows / budget.context)}


@cache
def open_corpus(path: Path) -> Corpus:
    """The corpus, read once in a process."""
    return load_corpus(path)


def train_group(jobs: Sequence[Job], args: Any, end: float) -> str:
    """Train runs side by side and write their results, unless the time has ended; returns what to print."""
    if time.time() > end:
        return f"No time is left for {', '.join(job.name for job in jobs)}."
    torch.set_num_threads(args.threads)
    budget, corpus, began = TRIAL if args.trial else Budget(), open_corpus(args.corpus), time.perf_counter()
    text = corpus.texts["train"].to(args.device)
    if args.device == "cuda":
        torch.cuda.synchronize()  # the text is there before other streams read it
    configs = [model_config(job.size, job.configuration, len(corpus.token_bytes), budget.context) for job in jobs]
    runs = [Training(c, text, job.rate, job.seed, budget, args.graphs) for c, job in zip(configs, jobs, strict=True)]
    for _ in range(budget.steps):
        for run in runs:
            run.step()
    if args.device == "cuda":
        torch.cuda.synchronize()
    seconds, lines = time.perf_counter() - began, []
    for job, run in zip(jobs, runs, strict=True):
        losses, every = run.losses.tolist(), math.ceil(budget.steps / 128)
        # No test text is read before the learning rate is chosen.
        names = ["validation"] if job in search_jobs() else ["validation", *corpus.tests]
        model = run.model.eval()
        texts = {name: measure_loss(model, corpus.texts[name], corpus.token_bytes, budget) for name in names}
        result = {**asdict(job), "texts": texts, "model": asdict(model.config), "budget": asdict(budget)}
        result |= {"parameters": sum(p.numel() for p in model.parameters()), "flops": flops(model.config)}
        result["losses"] = [sum(s) / len(s) for s in (losses[i : i + every] for i in range(0, len(losses), every))]
        result |= {"seconds": seconds, "together": len(jobs), "workers": args.workers, "graphs": args.graphs}
        device = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
        result |= {"device": device, "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
        if args.keep:
            save(args.out / f"{job.name}.pt", model, corpus.tokeniser)
        write_text(args.out / f"{job.name}.json", json.dumps(result, indent=1) + "\n")
        lines.append(f"{job.name}: {texts['validation']['bits_per_byte']:.4f} bits per byte, {seconds:.0f} s")
    return "\n".join(lines)


def missing(jobs: Iterable[Job], out: Path) -> list[Job]:
    """The runs without results."""
    return [job for job in jobs if not (out / f"{job.name}.json").exists()]


def train_all(jobs: Sequence[Job], args: Any, end: float) -> int:
    """Train the runs that have no results; returns how many still have none, after a failure or the end of the time."""
    groups: list[list[Job]] = []
    for job in missing(jobs, args.out):
        if not groups or len(groups[-1]) == args.together or groups[-1][0].size != job.size:
            groups.append([])
        groups[-1].append(job)
    with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(train_group, group, args, end): group for group in groups}
        for future in as_completed(futures):
            error = future.exception()
            names = ", ".join(job.name for job in futures[future])
            print(f"{names}: {type(error).__name__}: {error}" if error else future.result(), flush=True)
    return len(missing(jobs, args.out))


def chosen_rates(out: Path) -> dict[str, float]:
    """The learning rate with the lowest loss on validation text for each family.

    Raises:
        InputError: If runs that choose it are missing.
    """
    if absent := missing(search_jobs(), out):
        raise InputError(
            f"{out}: {len(absent)} runs that choose the learning rates are missing; train the stage search"
        )
    found: dict[str, list[tuple[float, float]]] = {family: [] for family in FAMILY.values()}
    for job in search_jobs():
        bits = json.loads((out / f"{job.name}.json").read_text())["texts"]["validation"]["bits_per_byte"]
        found[job.configuration].append((bits if math.isfinite(bits) else math.inf, job.rate))
    return {family: min(results)[1] for family, results in found.items()}


def save(path: Path, model: GPT, tokeniser: str) -> None:
    """Write a checkpoint: configuration, weights, tokeniser."""
    weights = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    with atomic_write(path) as file:
        torch.save({"config": asdict(model.config), "model": weights, "tokeniser": tokeniser}, file)


def load(path: Path, config: GPTConfig | None = None) -> tuple[GPT, str]:
    """A model in evaluation mode and its tokeniser from a checkpoint.

    Raises:
        InputError: If it is no checkpoint, or one of another configuration than the given one.
    """
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        found = GPTConfig(**stored["config"])
        model = GPT(found)
        model.load_state_dict(stored["model"])
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; lm.py demo writes a checkpoint, and train --keep one a run") from error
    except Exception as error:  # torch.load raises whatever the bytes of another file make it raise
        raise InputError(f"{path}: not a checkpoint of lm.py ({type(error).__name__})") from error
    if config and config != found:
        wanted, held = asdict(config), asdict(found)
        other = ", ".join(f"{k} {held[k]}, not {wanted[k]}" for k in wanted if wanted[k] != held[k])
        raise InputError(f"{path}: checkpoint of another configuration ({other}); leave --configuration out")
    return model.eval(), stored["tokeniser"]
