"""Attention of one layer over a packed batch: documents of a length side by side, no padding.

Equal lengths are one dense call; in half precision on CUDA the whole batch is one, of variable
lengths. Weights of all queries are made in blocks of documents and heads, so that no more than
`BLOCK` of them are ever in memory.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import varlen
from torch.nn.functional import scaled_dot_product_attention

BLOCK = 1 << 22
"""Most attention weights of all queries in memory at a time: 16 MiB of float32."""

Groups = tuple[tuple[int, int, int], ...]
"""(first piece, documents, pieces per document) of each length, as in `batches.Batch`."""


@dataclass(frozen=True)
class Block:
    """Some documents of one length and some heads: what is attended in one piece."""

    heads: slice
    first: int
    """First piece."""
    document: int
    """First document of the batch."""
    group: int
    """First document within its length."""
    count: int
    length: int

    @property
    def documents(self) -> slice:
        """The documents, counted within their length."""
        return slice(self.group, self.group + self.count)

    @property
    def span(self) -> slice:
        """The pieces."""
        return slice(self.first, self.first + self.count * self.length)

    def pieces(self, x: Tensor) -> Tensor:
        """View [documents, heads, L, size] of x [heads, T, size]."""
        view: Tensor = x[self.heads, self.span].unflatten(1, (self.count, self.length))
        return view.transpose(0, 1)

    def queries(self, x: Tensor, single: bool) -> Tensor:
        """The same of x [heads, queries, size], where a document may have one query alone."""
        if not single:
            return self.pieces(x)
        return x[self.heads, self.document : self.document + self.count].transpose(0, 1)[:, :, None]

    def add(
        self, passed: Tensor, relevance: Tensor, shares: Tensor, single: bool, n_heads: int
    ) -> None:
        """Pass relevance [1, T] of the queries on to the keys: sum_i r_i mean_h (A dm/dA)^+."""
        mean = shares.clamp(min=0).sum(1) / n_heads
        above = relevance[0, self.span].unflatten(0, (self.count, self.length))
        above = above[:, :1] if single else above
        passed[0, self.span] += torch.einsum("nq,nqk->nk", above, mean).flatten()


@dataclass(frozen=True)
class Heads:
    """Attention of one layer over the documents of a packed batch."""

    groups: Groups
    scaling: float
    window: int | None
    """Pieces at this distance or beyond are not attended; None where all are."""
    starts: Tensor | None = None
    """[n + 1] int32, the documents' first pieces and T, where lengths may vary in one call."""

    @property
    def n_pieces(self) -> int:
        """Pieces of documents; those behind them fill up the batch."""
        first, documents, length = self.groups[-1]
        return first + documents * length

    @property
    def pairs(self) -> int:
        """Pairs of pieces that attend to each other, all documents together."""
        return sum(documents * length * length for _, documents, length in self.groups)

    def blocks(self, n_heads: int, only: int | None = None) -> Iterator[Block]:
        """All documents and heads (or those of the length that starts at piece `only`)."""
        document = 0
        for first, documents, length in self.groups:
            if only is None or only == first:
                square = length * length
                n = max(1, BLOCK // (n_heads * square))
                h = max(1, min(n_heads, BLOCK // square))
                for group in range(0, documents, n):
                    for head in range(0, n_heads, h):
                        yield Block(slice(head, min(head + h, n_heads)), first + group * length,
                                    document + group, group, min(n, documents - group), length)
            document += documents

    def weights(self, block: Block, q: Tensor, k: Tensor) -> Tensor:
        """[documents, heads, queries, L] softmax(q K^T), in float32."""
        queries = block.queries(q, q.shape[1] != k.shape[1])
        return self.scores(queries.float(), block.pieces(k).float()).softmax(-1)

    def scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        """[documents, heads, queries, L] q K^T of queries and keys as blocks have them."""
        scores = (queries * self.scaling) @ keys.transpose(2, 3)
        if (mask := self.mask(keys.shape[2], keys.device)) is not None:
            scores.masked_fill_(~mask[: scores.shape[2]], -torch.inf)
        return scores

    def softmax_backward(
        self, block: Block, weights: Tensor, shares: Tensor, q: Tensor, k: Tensor, dq: Tensor,
        dk: Tensor,
    ) -> None:
        """Write the gradients of q and k, given `shares` = weights * gradient of the weights."""
        single = q.shape[1] != k.shape[1]
        scores = (shares - weights * shares.sum(-1, keepdim=True)) * self.scaling
        block.queries(dq, single).copy_(scores @ block.pieces(k).float())
        block.pieces(dk).copy_(scores.transpose(2, 3) @ block.queries(q, single).float())

    def mask(self, length: int, device: torch.device) -> Tensor | None:
        """[L, L] True where a query attends; None where it attends to all."""
        if self.window is None or length <= self.window:
            return None
        place = torch.arange(length, device=device)
        near: Tensor = (place[:, None] - place).abs() < self.window
        return near

    def rows(self, q: Tensor, k: Tensor, cls: Tensor | None) -> Tensor:
        """[heads, T] attention of the [CLS] queries; without `cls`, the mean over queries."""
        rows = torch.empty(k.shape[:2], dtype=torch.float32, device=k.device)
        queries = q if cls is None else q[:, cls]
        for block in self.blocks(len(k)) if cls is None else self._by_length(len(k)):
            mean = self.weights(block, queries, k).mean(2)
            block.pieces(rows[..., None]).copy_(mean[..., None])
        return rows

    def _by_length(self, n_heads: int) -> Iterator[Block]:
        """One block a length: enough where each document has one query."""
        document = 0
        for first, documents, length in self.groups:
            yield Block(slice(0, n_heads), first, document, 0, documents, length)
            document += documents

    def weighted(self, rows: Tensor, v: Tensor) -> Tensor:
        """[n, heads, size] z = sum_j a_j v_j of each document."""
        return torch.cat([
            (block.pieces(rows[..., None]).transpose(2, 3) @ block.pieces(v).float())[:, :, 0]
            for block in self._by_length(len(v))
        ])

    def dot(self, v: Tensor, g: Tensor) -> Tensor:
        """[heads, T] v_j . g of the document (g [n, heads, size]) that holds piece j."""
        products = torch.empty(v.shape[:2], dtype=torch.float32, device=v.device)
        for block in self._by_length(len(v)):
            of_document = g[block.document : block.document + block.count, :, :, None]
            block.pieces(products[..., None]).copy_(block.pieces(v).float() @ of_document)
        return products

    def summed(self, q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
        """[heads, T] sum_i A[i,j] (v_j . g_i) over a document's queries i; g [T, heads, size]."""
        sums = torch.empty(v.shape[:2], dtype=torch.float32, device=v.device)
        for block in self.blocks(len(v)):
            upward = block.pieces(g.transpose(0, 1)).float()
            down = self.weights(block, q, k) * (upward @ block.pieces(v).float().transpose(2, 3))
            block.pieces(sums[..., None]).copy_(down.sum(2)[..., None])
        return sums

    def fused(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[T, heads, size] attention of all queries."""
        if self.starts is not None:
            return self._varied(q, k, v)[0]
        output = torch.empty_like(v.transpose(0, 1), memory_format=torch.contiguous_format)
        precision = fused_precision(v.dtype, v.device)
        q, k, v = (x.to(precision) for x in (q, k, v))
        for block in self._by_length(len(v)):
            attended = scaled_dot_product_attention(
                block.pieces(q), block.pieces(k), block.pieces(v),
                attn_mask=self.mask(block.length, v.device), scale=self.scaling,
            )
            block.pieces(output.transpose(0, 1)).copy_(attended)
        output[self.n_pieces :] = 0
        return output

    def fused_with_rows(
        self, q: Tensor, k: Tensor, v: Tensor, cls: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The same, and the [CLS] rows [heads, T]."""
        if self.starts is None or self.window is not None:
            return self.fused(q, k, v), self.rows(q, k, cls)
        output, logs = self._varied(q, k, v)
        return output, self.rows_from_logs(q, k, cls, logs)

    def _varied(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Attention of documents of any lengths, and each query's log-sum-exp [heads, T]."""
        assert self.starts is not None
        longest = max(length for _, _, length in self.groups)
        reach = -1 if self.window is None else self.window - 1
        query, key, value = (x.to(v.dtype).transpose(0, 1) for x in (q, k, v))
        output, logs = varlen.varlen_attn(
            query, key, value, self.starts, self.starts, longest, longest, scale=self.scaling,
            window_size=(reach, reach), return_aux=varlen.AuxRequest(lse=True),
        )
        output[self.n_pieces :] = 0
        # Written down as [T, heads], and made as [heads, T].
        return output, logs if logs.shape == k.shape[:2] else logs.T

    def rows_from_logs(self, q: Tensor, k: Tensor, cls: Tensor, logs: Tensor) -> Tensor:
        """[heads, T] exp(q_cls . k - log-sum-exp of the [CLS] query), in float32."""
        n_pieces = k.shape[1]
        lengths = torch.diff(cls, append=cls.new_tensor([n_pieces]))
        own = torch.repeat_interleave(cls, lengths, output_size=n_pieces)
        scores: Tensor = (q[:, own].float() * k.float()).sum(-1) * self.scaling
        return (scores - logs[:, own]).exp()


def fused_precision(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Precision of attention over all queries for values of a precision, on a device.

    CPUs attend in float32 unless they have tiles for bfloat16 (AMX). Over 8 to 512 pieces, heads of
    64 values and conversions included, float32 is 1.05 to 1.4 times as fast as bfloat16 on AVX-512
    with bfloat16 products, and bfloat16 1.5 to 3.5 times as fast as float32 on AMX.
    """
    if device.type == "cpu" and not (dtype == torch.bfloat16 and _has_tiles()):
        return torch.float32
    return dtype


def _has_tiles() -> bool:
    return bool(torch.cpu._is_amx_tile_supported())


def of_varied_lengths(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the device has fused attention over documents of varied lengths."""
    half = dtype in (torch.float16, torch.bfloat16)
    if not half or device.type != "cuda" or torch.version.hip:
        return False
    taken = inspect.signature(varlen.varlen_attn).parameters
    return torch.cuda.get_device_capability(device) >= (8, 0) and "window_size" in taken
