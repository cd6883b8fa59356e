"""The equations that blocks are compared with, written out."""

import math

import torch
from torch import Tensor


def batch_norm(x: Tensor, norm) -> Tensor:
    mean, var, weight, bias = (v[:, None, None] for v in (norm.running_mean, norm.running_var, norm.weight, norm.bias))
    return (x - mean) / torch.sqrt(var + norm.eps) * weight + bias


def layer_norm(x: Tensor, norm) -> Tensor:
    mean, var = x.mean(1, keepdim=True), x.var(1, correction=0, keepdim=True)
    return (x - mean) / (var + 1e-6).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]


def hard_sigmoid(x: Tensor) -> Tensor:
    return (x / 6 + 0.5).clamp(0, 1)


def mean_std(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean((2, 3)), x.std((2, 3)) if x[0, 0].numel() > 1 else torch.zeros_like(x[..., 0, 0])


def self_attention(x: Tensor, layer) -> Tensor:
    """Of all positions of `x`, `(N, C, H, W)`; offsets below alpha = 20 are their own piecewise index."""
    channels, width = x.shape[1], x.shape[3]
    tokens = x.flatten(2).transpose(1, 2)  # (N, H * W, C)
    q, k, v = (tokens @ layer.qkv.weight.T).split(channels, dim=2)
    heads = []
    for head, part in enumerate(torch.arange(channels).split(layer.head_dim)):
        scaled = q[..., part] / math.sqrt(layer.head_dim)
        logits = scaled @ k[..., part].transpose(1, 2)
        for i, j in torch.cartesian_prod(*[torch.arange(tokens.shape[1])] * 2).tolist():
            if layer.position is None:
                continue
            rows, cols = i // width - j // width, i % width - j % width
            near = round(math.hypot(rows, cols)) + 40
            bucket = (rows + 40) * 81 + cols + 40 if layer.position.product else near
            table = layer.position.table[head]
            logits[:, i, j] += scaled[:, i] @ table[:, bucket] if layer.position.contextual else table[bucket]
        heads.append(logits.softmax(2) @ v[..., part])
    y = torch.cat(heads, dim=2) @ layer.proj.weight.T + layer.proj.bias
    return y.transpose(1, 2).reshape(x.shape)


def piecewise_index(d: float, alpha: float, beta: int, gamma: float) -> int:
    """Equation 18 of iRPE, in Python's double precision."""
    if abs(d) <= alpha:
        return round(d)
    far = round(alpha + math.log(abs(d) / alpha) / math.log(gamma / alpha) * (beta - alpha))
    return int(math.copysign(min(beta, far), d))
