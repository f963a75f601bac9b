"""A word embedding of fewer numbers: rare tokens share a row, and rows are factorised.

In a small classifier most parameters are word embeddings, which no pruning of layers, heads or
channels reaches. Token numbers stay what they are, so that the tokenizer need not change.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tierwise.runtime.errors import ConfigError


class CompactEmbedding(nn.Module):
    """``expand(rows(index[ids]))``, where `index` and `expand` may be missing.

    Args:
        num_embeddings: Tokens of the vocabulary.
        embedding_dim: Width of what comes out.
        rows: Different rows that are kept; ``num_embeddings`` for all.
        rank: Width of a row that is kept; ``embedding_dim`` for no factorisation.
        padding_idx: As it is called in `nn.Embedding`; kept for code that asks.
    """

    index: Tensor | None

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        rows: int,
        rank: int,
        *,
        padding_idx: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.padding_idx = padding_idx
        self.kept, self.rank = rows, rank
        self.rows = nn.Embedding(rows, rank, dtype=dtype)
        kind = torch.int16 if rows <= 2**15 else torch.int32
        index = torch.zeros(num_embeddings, dtype=kind) if rows < num_embeddings else None
        self.register_buffer("index", index)
        whole = rank == embedding_dim
        self.expand = None if whole else nn.Linear(rank, embedding_dim, bias=False, dtype=dtype)

    def forward(self, ids: Tensor) -> Tensor:
        """Token numbers of shape (...) to vectors of shape (..., embedding_dim)."""
        kept: Tensor = self.rows(ids if self.index is None else self.index[ids].long())
        if self.expand is None:
            return kept
        wide: Tensor = self.expand(kept)
        return wide

    @property
    def weight(self) -> Tensor:
        """The whole matrix, shape (num_embeddings, embedding_dim)."""
        rows: Tensor = self(torch.arange(self.num_embeddings, device=self.rows.weight.device))
        return rows


def compact(
    embedding: nn.Embedding, counts: Tensor, *, min_count: int, rank: int | None
) -> CompactEmbedding:
    """The embedding, with fewer numbers.

    The factors minimise the squared error of the vectors that the data looks up: a singular
    value decomposition with rows weighed by the root of their counts (Hsu et al., "Language model
    compression with weighted low-rank factorization", arXiv 2207.00112, eq. 6).

    Args:
        embedding: Is not changed.
        counts: How often the data has each token, shape (num_embeddings,).
        min_count: Tokens that are rarer share one row: their mean, weighed by counts. The
            padding token keeps its own.
        rank: Of the factors; None for none.

    Raises:
        ConfigError: The rank is no less than the embedding's width, or no token is that frequent.
    """
    weight = embedding.weight.detach().float()
    tokens, width = weight.shape
    if rank is not None and rank >= min(width, tokens):
        raise ConfigError(
            f"embedding_rank {rank} saves nothing: the embedding has {tokens} rows of {width} "
            f"numbers. Choose less than {min(width, tokens)}."
        )
    counts = counts.to(weight)
    keep = counts >= min_count
    if embedding.padding_idx is not None:
        keep[embedding.padding_idx] = True
    if int((counts * keep).count_nonzero()) == 0 and min_count:
        raise ConfigError(
            f"min_token_count {min_count} leaves no token: the data's most frequent one comes "
            f"{int(counts.max())} times. Choose a smaller number, or measure on more data."
        )
    index = None
    if not bool(keep.all()):
        rare = ~keep
        shares = counts[rare] + 1e-3  # those never seen count a little
        common = (weight[rare] * (shares / shares.sum()).unsqueeze(1)).sum(0, keepdim=True)
        index = torch.where(keep, keep.cumsum(0) - 1, keep.sum())
        weight = torch.cat([weight[keep], common])
        counts = torch.cat([counts[keep], counts[rare].sum().reshape(1)])
    made = CompactEmbedding(
        tokens,
        width,
        len(weight),
        width if rank is None else rank,
        padding_idx=embedding.padding_idx,
        dtype=embedding.weight.dtype,
    ).to(embedding.weight.device)
    with torch.no_grad():
        if index is not None and made.index is not None:
            made.index.copy_(index)
        if made.expand is None:
            made.rows.weight.copy_(weight)
            return made
        importance = (counts + 1).sqrt().unsqueeze(1)
        # Of the width only: the singular vectors that are wanted, without the large matrix's.
        _, vectors = torch.linalg.eigh((weight * importance).T @ (weight * importance))
        right = vectors[:, -made.rank :]
        made.rows.weight.copy_(weight @ right)
        made.expand.weight.copy_(right)
    return made
