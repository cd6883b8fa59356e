"""A GPT in nanoGPT's manner whose blocks mix positions by attention on all channels, or on a part of them.

The mixer of a block has two parts: a causal convolution on the first channels, and causal self-attention or a causal
Gaussian gate on the others. They are joined, as in PAT_sf and PAT_ch. In a plain GPT, attention reads all channels.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patnet import InputError

TAPS = 3  # of the convolution
GATED_CONVOLVED = 1 / 4  # share of the channels that the convolution reads in blocks with a gate


@dataclass(frozen=True)
class GPTConfig:
    """The arguments of a GPT.

    Args:
        vocab_size: Number of tokens in the vocabulary.
        context: Largest number of positions.
        layers: Number of blocks.
        width: Number of channels.
        heads: Number of attention heads when attention reads all channels; heads are equally wide in every form.
        convolved: Share of the channels that the convolution reads.
        added: The convolution's output is added to that of attention on all channels, not joined to that on the others.
        gated: Number of blocks, from the lowest, with a gate in place of attention.
        kv_heads: Number of heads of keys and values (grouped-query attention); 0 is one for each head.
        learned_positions: Positions are learned vectors, as in GPT-2, not rotary.
    """

    vocab_size: int
    context: int
    layers: int
    width: int
    heads: int
    convolved: float = 0.0
    added: bool = False
    gated: int = 0
    kv_heads: int = 0
    learned_positions: bool = False


@dataclass
class Cache:
    """What the parts of a model keep of past positions: keys and values, last inputs, running statistics.

    Args:
        size: Largest number of positions.
    """

    size: int
    length: int = 0
    states: defaultdict[nn.Module, dict[str, Tensor]] = field(default_factory=lambda: defaultdict(dict))

    def nbytes(self) -> int:
        """Memory in bytes."""
        return sum(x.nbytes for state in self.states.values() for x in state.values())


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate pairs of channels by the angle of the position: `(N, heads, T, dim)` to the same."""
    cos, sin = angles.to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class CausalAttention(nn.Module):
    """Causal self-attention, `(N, T, C)` to the same; heads share keys and values if there are fewer `kv_heads`."""

    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.dim = heads, kv_heads, width // heads
        self.qkv = nn.Linear(width, (heads + 2 * kv_heads) * self.dim, bias=False)
        self.proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, angles: Tensor | None, cache: Cache | None) -> Tensor:
        """Mix the positions of `x` with those in the cache, which precede them."""
        n, t, c = x.shape
        start = cache.length if cache else 0
        qkv = self.qkv(x).view(n, t, -1, self.dim).transpose(1, 2)
        qk, v = qkv.split([self.heads + self.kv_heads, self.kv_heads], dim=1)
        qk = qk if angles is None else rotate(qk, angles)
        q, k = qk.split([self.heads, self.kv_heads], dim=1)
        if cache:
            state = cache.states[self]
            for name, new in (("keys", k), ("values", v)):
                if name not in state:
                    state[name] = new.new_zeros(n, self.kv_heads, cache.size, self.dim)
                state[name][:, :, start : start + t] = new
            k, v = (state[name][:, :, : start + t] for name in ("keys", "values"))
        if t == 1:  # sees every position: the heads of a group become the queries of their keys
            y = F.scaled_dot_product_attention(q.reshape(n, self.kv_heads, -1, self.dim), k, v)
        else:
            # is_causal would align the mask to the first key
            mask = None if start == 0 else torch.ones(t, start + t, dtype=torch.bool, device=x.device).tril(start)
            grouped = self.kv_heads != self.heads
            y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=grouped)
            y = y.transpose(1, 2)
        return self.proj(y.reshape(n, t, c))


class CausalConv(nn.Module):
    """A dense convolution over the last three positions, `(N, T, C)` to the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(TAPS * width, width, bias=False)  # of the taps beside each other

    def forward(self, x: Tensor, cache: Cache | None) -> Tensor:
        """Mix the positions of `x` with those in the cache, which precede them."""
        n, t, c = x.shape
        state = cache.states[self] if cache else {}
        x = torch.cat([state["inputs"] if state else x.new_zeros(n, TAPS - 1, c), x], dim=1)
        state["inputs"] = x[:, t:]
        return self.proj(torch.cat([x[:, i : i + t] for i in range(TAPS)], dim=-1))


def running_sum(x: Tensor) -> Tensor:
    """Sums over the positions so far, `(N, T, C)` to the same; a GPU is fast on the last dimension only."""
    return x.mT.contiguous().cumsum(-1).mT


class GaussianGate(nn.Module):
    """PAT_ch's gate from mean and std of each channel, here over the positions so far: `(N, T, C)` to the same.

    A norm over channels takes the place of BatchNorm, which would mix positions, and a scale that of the one after it.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Linear(2 * width, width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor, cache: Cache | None) -> Tensor:
        """Mix the positions of `x` with those in the cache, which precede them."""
        mean, std = self.statistics(x.float(), *((cache.length, cache.states[self]) if cache else (0, {})))
        gate = F.hardsigmoid(self.norm(self.mix(torch.cat([mean, std], dim=-1))))
        return self.scale * gate * x

    @staticmethod
    def statistics(x: Tensor, start: int, state: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Mean and unbiased std of the positions so far, of which `state` holds those before `start`, and then all.

        The squares are summed as Welford does: each term is (1 - 1/n) times the squared difference from the mean
        before, so that none is negative and nothing cancels.
        """
        count = torch.arange(start + 1, start + x.shape[1] + 1, device=x.device)[:, None]
        before = state["mean"] if state else torch.zeros_like(x[:, :1])
        mean = (running_sum(x) + start * before) / count
        change = x - torch.cat([before, mean[:, :-1]], dim=1)
        squares = running_sum(change * (x - mean)) + (state["squares"] if state else 0)
        state["mean"], state["squares"] = mean[:, -1:], squares[:, -1:]
        variance = squares / (count - 1).clamp_min(1)
        return mean, variance.clamp_min(1e-6).sqrt()  # no gradient below the bound: never differentiated at 0


class Block(nn.Module):
    """GPT-2's block, without biases: `x + mixer(norm(x))`, then `x + mlp(norm(x))`.

    The mixer is a convolution on the first channels, and attention or a gate on the others, or on all if it is added.
    """

    def __init__(self, config: GPTConfig, gated: bool) -> None:
        super().__init__()
        width, head = config.width, config.width // config.heads
        self.norm1, self.norm2 = (nn.LayerNorm(width, bias=False) for _ in range(2))
        self.convolved = round(width * (GATED_CONVOLVED if gated else config.convolved))
        self.others = width if config.added else width - self.convolved
        heads = self.others // head
        self.conv = CausalConv(self.convolved) if self.convolved else None
        self.gate = GaussianGate(self.others) if gated else None
        self.attention = None if gated else CausalAttention(self.others, heads, config.kv_heads or heads)
        self.fc = nn.Linear(width, 4 * width, bias=False)
        self.proj = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor, angles: Tensor | None, cache: Cache | None) -> Tensor:
        """The positions of `x` follow those in the cache."""
        y = self.norm1(x)
        convolved, others = y[..., : self.convolved], y[..., y.shape[-1] - self.others :]
        y = self.gate(others, cache) if self.gate else self.attention(others, angles, cache)
        if self.conv:
            convolved = self.conv(convolved, cache)
            added = self.others == x.shape[-1]
            y = y + F.pad(convolved, (0, self.others - self.convolved)) if added else torch.cat([convolved, y], dim=-1)
        x = x + y
        return x + self.proj(F.gelu(self.fc(self.norm2(x))))


class GPT(nn.Module):
    """Logits of the next token: `(N, T)` to `(N, T, vocab_size)`.

    Raises:
        InputError: If there are more positions than the model's context.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocab_size, config.width)  # also the weights of the logits
        self.positions = nn.Embedding(config.context, config.width) if config.learned_positions else None
        self.blocks = nn.ModuleList(Block(config, i < config.gated) for i in range(config.layers))
        self.norm = nn.LayerNorm(config.width, bias=False)
        dim = config.width // config.heads
        turns = torch.outer(torch.arange(config.context), 10000.0 ** (-torch.arange(0, dim, 2) / dim))
        rotary = None if config.learned_positions else torch.stack([turns.cos(), turns.sin()])
        self.register_buffer("angles", rotary, persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:  # proj: what adds to the residual stream
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.layers) if ".proj." in name else 0.02)

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits of the tokens that follow; with a cache, the tokens continue what it holds, and are added to it."""
        start = cache.length if cache else 0
        end = start + tokens.shape[1]
        if end > self.config.context:
            raise InputError(f"{end} positions: the context of this model is {self.config.context}; give fewer tokens")
        x = self.tokens(tokens)
        if self.positions is not None:
            x = x + self.positions.weight[start:end]
        angles = None if self.angles is None else self.angles[:, start:end]
        for block in self.blocks:
            x = block(x, angles, cache)
        if cache:
            cache.length = end
        return F.linear(self.norm(x), self.tokens.weight)

    @torch.inference_mode()
    def generate(self, prompt: Tensor, count: int, temperature: float = 0.8, seed: int = 0) -> Iterator[int]:
        """Tokens that continue a prompt `(T,)`, one after the other, each computed from the cache."""
        generator = torch.Generator().manual_seed(seed)
        cache, tokens = Cache(self.config.context), prompt[None]
        for _ in range(count):
            logits = self(tokens, cache)[0, -1].float().cpu()
            token = torch.multinomial((logits / temperature).softmax(0), 1, generator=generator)
            yield int(token)
            tokens = token[None].to(prompt.device)
