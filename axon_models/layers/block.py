"""The residual blocks of a decoder: how attention and feed-forward stand to one another and to their norms."""
# B batch, T time, D model, N experts

from __future__ import annotations

from torch import Tensor, nn

from axon_models.layers.attend import Attend
from axon_models.layers.moe.routing import RoutedExperts
from axon_models.layers.rotary import Rotation

Blocked = tuple[Tensor, Tensor | None]
"""States (B, T, D), and the logits of the block's router (B, T, N), None where there is none."""


class ModelBlock(nn.Module):
    """A block of a language model of any family: what is recomputed, or kept in parts, as a whole."""


class Block(ModelBlock):
    """Pre-norm: x + attention(norm(x)), then x + feed_forward(norm(x)) (Radford et al. 2019, section 2.3)."""

    def __init__(
        self, *, attention_norm: nn.Module, attention: nn.Module, feed_forward_norm: nn.Module, feed_forward: nn.Module
    ) -> None:
        super().__init__()
        self.attention_norm, self.attention = attention_norm, attention
        self.feed_forward_norm, self.feed_forward = feed_forward_norm, feed_forward

    def forward(self, x: Tensor, rotation: Rotation, attend: Attend) -> Blocked:
        """(B, T, D) to (B, T, D)."""
        x = x + self.attention(self.attention_norm(x), rotation, attend)
        return x + self.feed_forward(self.feed_forward_norm(x)), None


class RoutedBlock(Block):
    """Pre-norm, with experts for a feed-forward."""

    feed_forward: RoutedExperts

    def forward(self, x: Tensor, rotation: Rotation, attend: Attend) -> Blocked:
        """(B, T, D) to (B, T, D) and (B, T, N)."""
        x = x + self.attention(self.attention_norm(x), rotation, attend)
        y, router_logits = self.feed_forward.forward_with_logits(self.feed_forward_norm(x))
        return x + y, router_logits


class PostNormBlock(Block):
    """norm(x + attention(x)), then norm(x + feed_forward(x)) (Vaswani et al. 2017, section 3.1; GPT-1)."""

    def forward(self, x: Tensor, rotation: Rotation, attend: Attend) -> Blocked:
        """(B, T, D) to (B, T, D)."""
        x = self.attention_norm(x + self.attention(x, rotation, attend))
        return self.feed_forward_norm(x + self.feed_forward(x)), None


class ParallelBlock(Block):
    """x + attention(norm(x)) + feed_forward(norm(x)) with one norm (Wang & Komatsuzaki 2021, GPT-J; Phi)."""

    def __init__(self, *, attention_norm: nn.Module, attention: nn.Module, feed_forward: nn.Module) -> None:
        ModelBlock.__init__(self)
        self.attention_norm, self.attention, self.feed_forward = attention_norm, attention, feed_forward

    def forward(self, x: Tensor, rotation: Rotation, attend: Attend) -> Blocked:
        """(B, T, D) to (B, T, D)."""
        normed = self.attention_norm(x)
        return x + self.attention(normed, rotation, attend) + self.feed_forward(normed), None
