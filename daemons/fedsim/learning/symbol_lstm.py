"""The network of LSTM models: an embedding, LSTM layers, and a linear layer at each place."""

from __future__ import annotations

from torch import Tensor, nn


class SymbolLstm(nn.Module):
    """From symbols [n, length], as the floats that a batch holds, to the logits of what follows, [n, length, N]."""

    def __init__(self, num_symbols: int, embedding: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_symbols, embedding)
        self.lstm = nn.LSTM(embedding, hidden, layers, batch_first=True)
        self.output = nn.Linear(hidden, num_symbols)

    def forward(self, symbols: Tensor) -> Tensor:
        """Each sequence begins with a state of zeros."""
        states, _ = self.lstm(self.embedding(symbols.long()))
        logits: Tensor = self.output(states)
        return logits
