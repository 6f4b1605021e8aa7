"""What a word looks like: a convolution over its characters, and the strongest response of each filter.

Ma, Hovy, "End-to-end Sequence Labeling via Bi-directional LSTM-CNNs-CRF", ACL 2016, section 2.1.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from striate.errors import InputError

__all__ = ["CharCNN"]


class CharCNN(nn.Module):
    """Character embedding, dropout, convolution with full padding, tanh, maximum over the word.

    The authors fill every word up to the longest with a learned word-end symbol that takes part in the maximum. More
    than ``width`` of these add no window that was not there before, so each word gets exactly ``width``: the same
    numbers, and no word's vector depends on its neighbours' lengths.

    Args:
        num_chars: characters are numbered from 1 to ``num_chars - 1``; 0 is what follows a word's last character.
        dim: of the embedding, drawn uniformly in ±sqrt(3 / dim).
        filters: of the convolution.
        width: of its window, in characters.
        dropout: on single elements of the embedding.

    >>> CharCNN(20)(torch.tensor([[[3, 5, 0], [4, 0, 0]]])).shape
    torch.Size([1, 2, 30])
    """

    def __init__(self, num_chars: int, dim: int = 30, filters: int = 30, width: int = 3, dropout: float = 0.5) -> None:
        super().__init__()
        for name, value in (("num_chars", num_chars - 1), ("dim", dim), ("filters", filters), ("width", width)):
            if value < 1:
                raise InputError(name, "CharCNN", allowed=f">= {2 if name == 'num_chars' else 1}", got=value)
        self.end = num_chars
        self.embedding = nn.Embedding(num_chars + 1, dim, padding_idx=0)
        self.dropout = nn.Dropout(dropout)
        self.conv = nn.Conv1d(dim, filters, width, padding=width - 1)
        bound = math.sqrt(3 / dim)
        nn.init.uniform_(self.embedding.weight[1:].detach(), -bound, bound)
        nn.init.xavier_uniform_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, chars: Tensor) -> Tensor:
        """Return (…, filters) for (…, C) characters; zeros for words without any.

        Args:
            chars: int64, any number of leading dimensions.
        """
        words = chars.reshape(-1, chars.shape[-1])
        width = self.conv.kernel_size[0]
        lengths = (words != 0).sum(dim=1, keepdim=True)
        place = torch.arange(words.shape[1] + width, device=words.device)
        ended = torch.where((place >= lengths) & (place < lengths + width), self.end, F.pad(words, (0, width)))
        x = self.conv(self.dropout(self.embedding(ended)).transpose(1, 2))
        # The windows of a word alone: lengths + width symbols, and the padding on both sides.
        inside = torch.arange(x.shape[2], device=words.device) < lengths + 2 * width - 1
        strongest = x.masked_fill(~inside[:, None], -math.inf).amax(dim=2)
        found = torch.where(lengths > 0, torch.tanh(strongest), 0)  # tanh keeps the order, so it can wait
        return found.view(*chars.shape[:-1], found.shape[1])
