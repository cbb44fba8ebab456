"""A decoder-only transformer (Vaswani et al. 2017; with layer norms before each block, as in GPT-2)."""

import torch
from torch import nn
from torch.nn.functional import gelu, scaled_dot_product_attention


class Transformer(nn.Module):
    """From symbols [n, length], as the floats that a batch holds, to the logits of what follows, [n, length, N]."""

    def __init__(self, length, num_symbols, width, heads, layers):
        super().__init__()
        self.symbols = nn.Embedding(num_symbols, width)
        self.places = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, num_symbols)

    def forward(self, symbols):
        x = self.symbols(symbols.long()) + self.places
        for block in self.blocks:
            x = block(x)
        return self.output(self.norm(x))


class Block(nn.Module):
    """Attention to earlier places, and a feed-forward layer; each adds to its input."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.before_attention = nn.LayerNorm(width)
        self.query, self.key, self.value, self.merge = (nn.Linear(width, width) for _ in range(4))
        self.before_layer = nn.LayerNorm(width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        given = self.before_attention(x)
        query, key, value = (
            project(given).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        found = scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.merge(found.transpose(1, 2).flatten(2))
        return x + self.narrow(gelu(self.widen(self.before_layer(x))))
