"""The paged kernel: one new token of each sequence against a cache that lies in blocks.

A GPU runs one thread block for each head of each sequence. Its threads play two parts, one after the other:
first a thread is a token of the context, then it is a number of the output. Between the parts lies a barrier.

    block_tables[sequence]   [ 7 | 2 | 5 ]        block_size 2, head_dim 4, so a tile is 4 tokens

    tile 0   tokens   0  1  2  3    thread t     scores[t] = query · key of token t · scale
                      ─── barrier ───
             numbers  0  1  2  3    thread c     adds weight · value[c] of these 4 tokens
                      ─── barrier ───
    tile 1   token    4             thread 0     scores[0] = …                      (5 tokens in all)

TokenAttention is the same kernel with blocks of one token: the table names the place of every token.

Sources: Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention" (SOSP
2023), sections 4.3 and 5.1; LightLLM, "TokenAttention". In the engine: kernels_numba/cuda/paged_attention.py.
"""

from __future__ import annotations

import math

from numba import cuda, float32

MOST_THREADS = 256
"""Most threads of a thread block, so the widest head: the size of an array in shared memory is a constant."""


@cuda.jit
def paged_attention(query, key_cache, value_cache, block_tables, context_lens, scale, out):
    """Attention of each sequence's newest token to all tokens of its context.

        scores[t] = scale · Σ_c query[c] · key[t, c]          out[c] = Σ_t softmax(scores)[t] · value[t, c]

    It is launched with the grid (num_heads, num_seqs) and head_dim threads in each block: `cuda.blockIdx.x`
    is the query head, `cuda.blockIdx.y` the sequence, `cuda.threadIdx.x` the thread.

    Args:
        query: [num_seqs, num_heads, head_dim], float32.
        key_cache, value_cache: [num_blocks, num_kv_heads, block_size, head_dim], float32. A block_size may
            be 1 or more; it need not divide head_dim.
        block_tables: [num_seqs, max_blocks], int32: the physical block of each logical block of a sequence.
        context_lens: [num_seqs], int32: tokens of each sequence, 1 or more, often more than threads.
        scale: of the scores, a number.
        out: like query; written.

    Token t of a sequence is row `t % block_size` of block `block_tables[sequence, t // block_size]`.
    Neighbouring query heads share a KV head: the first num_heads / num_kv_heads of them have KV head 0, the
    next as many KV head 1, and so on.

    What it promises:
        The threads of a block share the work: together they read each number of their keys and values once.
        Between two threads that touch one cell, one of them to write, lies a barrier (`cuda.syncthreads()`),
        and all threads of a block come to every barrier.
        Each cell of `out` is written once; of the other arguments nothing is.
        It reads nothing that is not there: no row behind the last token (which may hold NaN), no entry of a
        table behind the last block, no block of others, no cell of `out`.
        Scores may be thousands, of either sign: no exponential overflows, and not all of them vanish.
        Sums go by tokens, never by addresses: where the blocks lie does not change a bit of the result.
    """
    raise NotImplementedError
