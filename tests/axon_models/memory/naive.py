"""Transformer-XL written out number by number, from section 3.3 of Dai et al. 2019."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from axon_models.memory.model import Block, TransformerXL


def sinusoid(distance: int, d_model: int) -> Tensor:
    angles = [distance / 10000 ** (2 * i / d_model) for i in range(d_model // 2)]
    return torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles], dtype=torch.float64)


def attention(block: Block, x: Tensor, memory: Tensor, n_heads: int, span: int | None) -> Tensor:
    """x (T, D) and memory (M, D), of one row, to (T, D)."""
    layer, states = block.attention, torch.cat((memory, x))
    n_memory, width, size = len(memory), x.shape[1], x.shape[1] // n_heads
    w_key, w_value = layer.key_value.weight.split(width)
    rows = []
    for t in range(len(x)):
        i = n_memory + t
        heads = []
        for head in range(n_heads):
            own = slice(head * size, (head + 1) * size)
            q = layer.query.weight[own] @ states[i]
            u, v = layer.u_bias[own], layer.v_bias[own]
            scores, values = [], []
            for j in range(i + 1):
                if span is not None and i - j > span:
                    continue
                k = w_key[own] @ states[j]
                r = layer.position.weight[own] @ sinusoid(i - j, width)
                a, b, c, d = q @ k, q @ r, u @ k, v @ r
                scores.append((a + b + c + d) / math.sqrt(size))
                values.append(w_value[own] @ states[j])
            p = torch.stack(scores).softmax(0)
            heads.append(sum(p_j * value for p_j, value in zip(p, values, strict=True)))
        rows.append(layer.output.weight @ torch.cat(heads))
    return torch.stack(rows)


def norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * weight + bias


def logits(model: TransformerXL, tokens: list[int], memory: list[Tensor], span: int | None = None) -> Tensor:
    """(T, V) of one row, with a memory (M, D) for each layer."""
    return segment(model, tokens, memory, span)[0]


def text(model: TransformerXL, tokens: list[int]) -> Tensor:
    """(T, V) of one row, segment by segment: each layer remembers what entered it, without gradient."""
    length, n_remembered = model.config.segment_length, model.config.memory_length
    memory, parts = [model.embedding.weight[:0].detach()] * len(model.blocks), []
    for start in range(0, len(tokens), length):
        part, entered = segment(model, tokens[start : start + length], memory)
        states = [torch.cat((old, new.detach())) for old, new in zip(memory, entered, strict=True)]
        memory = [one[max(len(one) - n_remembered, 0) :] for one in states]
        parts.append(part)
    return torch.cat(parts)


def segment(
    model: TransformerXL, tokens: list[int], memory: list[Tensor], span: int | None = None
) -> tuple[Tensor, list[Tensor]]:
    """As `logits`, and what entered each layer, (T, D)."""
    config, entered = model.config, []
    x = torch.stack([model.embedding.weight[token] * math.sqrt(config.d_model) for token in tokens])
    for block, remembered in zip(model.blocks, memory, strict=True):
        entered.append(x)
        attended = attention(block, x, remembered, config.heads, span)
        x = norm(x + attended, block.attention_norm.weight, block.attention_norm.bias, config.norm_eps)
        inner = (x @ block.feed_forward.up.weight.t() + block.feed_forward.up.bias).clamp(min=0)
        y = inner @ block.feed_forward.down.weight.t() + block.feed_forward.down.bias
        x = norm(x + y, block.feed_forward_norm.weight, block.feed_forward_norm.bias, config.norm_eps)
    return x @ model.output_weight.t(), entered
