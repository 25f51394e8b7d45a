"""What a training step computes, counted in floating-point operations of its matrix products."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A decoder with tied embeddings (RMSNorm, grouped queries, SwiGLU) and the rows of one step."""

    d_model: int
    n_layers: int
    heads: int
    kv_heads: int
    d_feed_forward: int
    vocab_size: int = 4096
    seq_len: int = 256
    batch_size: int = 16

    @property
    def head_dim(self) -> int:
        return self.d_model // self.heads

    @property
    def n_parameters_of_attention(self) -> int:
        return self.d_model * self.head_dim * (2 * self.heads + 2 * self.kv_heads)

    @property
    def n_multiplied(self) -> int:
        """Parameters that a token is multiplied with: all but the gains of norms, the tied matrix once."""
        feed_forward = 3 * self.d_model * self.d_feed_forward
        return self.vocab_size * self.d_model + self.n_layers * (self.n_parameters_of_attention + feed_forward)

    @property
    def n_parameters(self) -> int:
        return self.n_multiplied + (2 * self.n_layers + 1) * self.d_model

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.seq_len

    @property
    def gpt2_inner(self) -> int:
        """The width of GPT-2's feed-forward with which its blocks have as many weights as these."""
        of_a_block = self.n_parameters_of_attention + 3 * self.d_model * self.d_feed_forward
        return round((of_a_block - 4 * self.d_model**2) / (2 * self.d_model))


def training_flops_per_token(shape: Shape) -> int:
    """6·N + 12·L·H·Q·T (Chowdhery et al. 2022, "PaLM", appendix B).

    Forward and backward pass of N multiplied parameters, and of attention over T keys in L layers with H heads of Q
    dimensions. Causality is not discounted, as there: who leaves out what a mask would hide is so much faster.
    """
    attention = 12 * shape.n_layers * shape.heads * shape.head_dim * shape.seq_len
    return 6 * shape.n_multiplied + attention


def mfu(shape: Shape, tokens_per_s: float, peak_flops: float) -> float:
    """Model FLOPs utilisation: what a step needs to compute over what the machine could have computed meanwhile."""
    return training_flops_per_token(shape) * tokens_per_s / peak_flops
