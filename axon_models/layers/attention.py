"""Grouped-query attention. What is attended to is a function given to `forward`, so the layer has no variants."""
# B batch, T time, D model, H heads, G kv groups, d head dimension

from __future__ import annotations

from torch import Tensor, nn

from axon_models.layers.attend import Attend
from axon_models.layers.rotary import Rotation, rotate


class Attention(nn.Module):
    """Queries in `heads` groups share `kv_heads` keys and values (Ainslie et al. 2023, section 2.2).

    G = H is multi-head and G = 1 multi-query attention. Queries, keys and values come out of one product.
    """

    def __init__(self, d_model: int, *, heads: int, kv_heads: int, head_dim: int) -> None:
        super().__init__()
        self.n_queries, self.n_keys, self.head_dim = heads, kv_heads, head_dim
        self.qkv = nn.Linear(d_model, (heads + 2 * kv_heads) * head_dim, bias=False)
        self.output = nn.Linear(heads * head_dim, d_model, bias=False)

    def forward(self, x: Tensor, rotation: Rotation, attend: Attend) -> Tensor:
        """x (B, T, D) to (B, T, D)."""
        heads, groups = self.n_queries, self.n_keys
        qkv = self.qkv(x).unflatten(-1, (heads + 2 * groups, self.head_dim))  # (B, T, H+2G, d)
        turned, v = qkv.split((heads + groups, groups), dim=2)
        q, k = rotate(turned, rotation).split((heads, groups), dim=2)  # (B, T, H, d), (B, T, G, d)
        return self.output(attend(q, k, v).flatten(2))  # (B, T, D)
