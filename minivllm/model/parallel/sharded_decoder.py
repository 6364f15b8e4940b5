"""A rank's share of a decoder: some layers, and of each of them some parts.

    token_ids ── look up, where the row is ──► x
                                               │ the same on all ranks that share these layers
           ┌───────────────────────────────────┤
           │        ┌─ part 0: q k v ─ attention ─ o ─┐
       norm(x) ─────┤  part 1: q k v ─ attention ─ o  ├─ sum in order ─ (+ x) ─ norm ─ …  the MLP alike
                    └─ …                              ┘
    hidden ── part 0: rows 0 … of lm_head, part 1: … ──► side by side at rank 0, padding cut off

`q k v` and `gate up` are cut by rows (outputs), `o` and `down` by columns (inputs), as in Megatron-LM: so a
part goes from the one to the other without a message, and two sums a layer are all that is sent. A part
is made of the plain decoder's own classes (`minivllm/model/layers.py`), with fewer heads. What a sum needs
once, a bias of `o` or `down`, is part 0's.

Paper: Megatron-LM (arXiv 1909.08053, section 3). Read next: `layout.py` for what each rank owns, `load.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from minivllm.model.decoder import KVScales
from minivllm.model.layers import Attend, Attention, DenseMatrix, GatedMLP, RMSNorm, StackedLinear
from minivllm.model.matrix import Matrix
from minivllm.model.parallel.layout import Part, Share
from minivllm.model.parallel.peers import Peers
from minivllm.model.rotary import RotaryEmbedding


class ShardedLayer:
    """One layer's parts of one rank."""

    def __init__(
        self,
        share: Share,
        layer: int,
        dtype: torch.dtype,
        device: torch.device,
        peers: Peers,
        matrix_device: torch.device | None = None,
    ) -> None:
        config = share.config
        self._peers = peers
        self.input_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype, device)
        self.post_attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype, device)
        self.attentions: list[Attention] = []
        self.mlps: list[GatedMLP] = []
        for part in share.parts:
            own = share.part_config(part)
            attention = Attention(own, share.cache_layer(part, layer), dtype, device, matrix_device)
            mlp = GatedMLP(own, dtype, device, matrix_device)
            if part.number:  # a bias is added once
                attention.output.bias = mlp.down.bias = None
            self.attentions.append(attention)
            self.mlps.append(mlp)

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        normed = self.input_norm(x)
        x = self._peers.sum_parts([part(normed, cos, sin, attend) for part in self.attentions]).add_(x)
        normed = self.post_attention_norm(x)
        return self._peers.sum_parts([part(normed) for part in self.mlps]).add_(x)


class ShardedDecoder:
    """What `runners/eager.py` needs of a decoder, for one rank; weights are uninitialised memory.

    On the ranks of a pipeline's later stages `forward` takes hidden states instead of looking tokens up, and
    on all but the last one it hands them on.

    Attributes:
        embedding: this rank's rows of the embedding, padding included; none on a stage that needs none.
        heads: for each own part, its rows of `lm_head`; the embedding's, where they are tied.
    """

    def __init__(
        self,
        share: Share,
        dtype: torch.dtype,
        device: torch.device,
        peers: Peers,
        *,
        tied: bool,
        matrix_device: torch.device | None = None,
    ) -> None:
        """`matrix_device`: where matrices are, if not on `device`: on "meta", if others take their places."""
        config = share.config
        self.share, self.peers, self.dtype = share, peers, dtype
        self.config = share.cache_config
        self.tied = tied
        self.quantization: str | None = None
        self.kv_scales: tuple[KVScales | None, ...] = (None,) * self.config.num_layers
        """As `Decoder.kv_scales`, for each layer of `config`."""
        self.rotary = RotaryEmbedding(config, device)
        rows, num_parts = share.padded_vocabulary, len(share.parts)
        needs_embedding = share.is_first or (tied and share.is_last)
        count = num_parts * rows if needs_embedding else 0
        self.embedding = torch.zeros(count, config.hidden_size, dtype=dtype, device=device)
        self.layers = [
            ShardedLayer(share, layer, dtype, device, peers, matrix_device) for layer in share.layers
        ]
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype, device)
        self.heads: list[Matrix] = []
        if share.is_last:
            whole = self.embedding
            if not tied:
                place = matrix_device or device
                whole = torch.zeros(num_parts * rows, config.hidden_size, dtype=dtype, device=place)
            self.heads = [DenseMatrix(own) for own in whole.view(num_parts, rows, -1)]

    def forward(
        self, token_ids: Tensor, positions: Tensor, attend: Attend, rows: Tensor | None = None
    ) -> Tensor:
        """The last hidden state of `token_ids` [T], or only `rows`; on the last stage it is real."""
        cos, sin = self.rotary.angles(positions, self.dtype)
        if self.share.is_first:
            x = self.look_up(token_ids)
        else:
            shape = len(token_ids), self.share.config.hidden_size
            x = self.peers.receive(self.embedding.new_empty(shape))
        for layer in self.layers:
            x = layer(x, cos, sin, attend)
        if not self.share.is_last:
            self.peers.send_on(x)
        return self.norm(x if rows is None else x[rows])

    def look_up(self, token_ids: Tensor) -> Tensor:
        """Embeddings [T, hidden_size]: every rank looks, and the owner's answer is taken."""
        own_rows = len(self.embedding)
        owners = token_ids // own_rows
        answers = functional.embedding(token_ids % own_rows, self.embedding)
        return self.peers.all_parts(answers[None])[owners, torch.arange(len(owners), device=owners.device)]

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Scores of all tokens [n, vocab_size] on rank 0, in float32 or float64; nothing elsewhere."""
        count, width, vocab_size = len(hidden), self.share.padded_vocabulary, self.share.config.vocab_size
        if not count:  # a step of chunks that do not reach their ends
            return _as_logits(hidden.new_empty(0, vocab_size))
        if self.share.is_last:
            products = (head.product(hidden) for head in self.heads)
            own = torch.stack([functional.pad(part, (0, width - part.shape[1])) for part in products])
        else:
            own = hidden.new_empty(len(self.share.parts), count, width)
        parts = self.peers.parts_at_rank_0(own)
        if parts is None:
            return hidden[:0]
        return _as_logits(parts.transpose(0, 1).reshape(count, -1)[:, :vocab_size].contiguous())

    @property
    def num_bytes(self) -> int:
        """Memory that this rank's weights take."""
        layers, output = self.step_bytes
        return layers + self.embedding.numel() * self.dtype.itemsize + (0 if self.tied else output)

    @property
    def step_bytes(self) -> tuple[int, int]:
        """As `Decoder.step_bytes`, of this rank."""
        norms, matrices = (1 + 2 * len(self.layers)) * self.norm.weight.numel(), 0
        for layer in self.layers:
            for _, attention, mlp in self.parts_of(layer):
                matrices += sum(linear.num_bytes for linear in linears_of(attention, mlp))
                norms += 2 * attention.head_dim if attention.query_norm else 0
        return matrices + norms * self.dtype.itemsize, sum(head.num_bytes for head in self.heads)

    def parts_of(self, layer: ShardedLayer) -> Iterator[tuple[Part, Attention, GatedMLP]]:
        return zip(self.share.parts, layer.attentions, layer.mlps, strict=True)


def linears_of(attention: Attention, mlp: GatedMLP) -> tuple[StackedLinear, ...]:
    """A part's linear layers, in the order of `DecoderLayer.linears`."""
    return attention.qkv, attention.output, mlp.gate_up, mlp.down


def _as_logits(numbers: Tensor) -> Tensor:
    return numbers if numbers.dtype == torch.float64 else numbers.float()
