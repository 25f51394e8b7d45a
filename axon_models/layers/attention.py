"""Grouped-query attention. What is attended to is a function given to `forward`, so the layer has no variants."""
# B batch, T time, D model, H heads, G kv groups, d head dimension

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from axon_models.layers.attend import Attend
from axon_models.layers.rotary import Rotation

Turn = Callable[[Tensor, Rotation], Tensor]
"""Queries or keys (B, T, N, d) to the same turned by their positions; `rotate`, or `unturned` for other positions."""


class Attention(nn.Module):
    """Queries in `heads` groups share `kv_heads` keys and values (Ainslie et al. 2023, section 2.2).

    G = H is multi-head and G = 1 multi-query attention. qkv: D to (H+2G)·d, so that queries, keys and values come out
    of one product; output: H·d to D.
    """

    def __init__(
        self, *, qkv: nn.Module, output: nn.Module, turn: Turn, heads: int, kv_heads: int, head_dim: int
    ) -> None:
        super().__init__()
        self.n_queries, self.n_keys, self.head_dim = heads, kv_heads, head_dim
        self.qkv, self.output, self._turn = qkv, output, turn

    def forward(self, x: Tensor, rotation: Rotation, attend: Attend) -> Tensor:
        """x (B, T, D) to (B, T, D)."""
        heads, groups = self.n_queries, self.n_keys
        qkv = self.qkv(x).unflatten(-1, (heads + 2 * groups, self.head_dim))  # (B, T, H+2G, d)
        turned, v = qkv.split((heads + groups, groups), dim=2)
        q, k = self._turn(turned, rotation).split((heads, groups), dim=2)  # (B, T, H, d), (B, T, G, d)
        return self.output(attend(q, k, v).flatten(2))  # (B, T, D)
