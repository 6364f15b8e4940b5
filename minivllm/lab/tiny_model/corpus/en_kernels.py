"""English facts: what the hardware does. The format of the text is explained in `notes.py`."""

NOTES = """
# attention | the attention mechanism
= Attention lets each token look at the tokens before it: it compares its query with their keys and takes
  a weighted average of their values.
- The weights are the softmax of the scaled dot products of the query and the keys.
- The scores are divided by the square root of the head dimension.
- Its arithmetic grows with the square of the sequence length during prefill.

# FlashAttention | flash attention
= FlashAttention computes exact attention tile by tile in fast on-chip memory and never writes the whole
  score matrix to HBM.
- It does about the same number of operations as ordinary attention, but far fewer accesses to HBM.
- It uses online softmax to combine the tiles.
- Its extra memory grows linearly with the sequence length instead of quadratically.
- It was published by Dao and others in 2022.
? Is FlashAttention exact? | Is FlashAttention an approximation?
! Yes, it is exact. It gives the same result as ordinary attention up to rounding, because online softmax
  combines the tiles without approximation.
? Why is FlashAttention fast? | Why is FlashAttention faster?
! Attention is limited by memory traffic. FlashAttention keeps the tiles of scores on the chip, so much
  less data moves to and from HBM.
? What is the difference between FlashAttention and PagedAttention?
! FlashAttention is about how attention is computed with little memory traffic. PagedAttention is about
  where the KV cache is stored. The two can be used together.

# online softmax
= Online softmax computes a softmax in one pass by keeping a running maximum and a running sum.
- When a larger maximum appears, the old sum is multiplied by a factor that corrects it.
- Subtracting the maximum keeps the exponentials from overflowing.
- It was described by Milakov and Gimelshein in 2018 and is what makes FlashAttention possible.

# tiling | a tile
= Tiling cuts large matrices into small tiles that fit into fast memory, so that each number read is used
  many times.
- A larger tile means more reuse but needs more shared memory.
- Matrix multiplication and FlashAttention both depend on it.

# the roofline model | a roofline
= The roofline model says that a kernel is limited either by the memory bandwidth or by the peak
  arithmetic of the machine.
- To the left of the ridge a kernel is limited by memory, and to the right of it by computation.
- The speed it allows is the smaller of the peak and the bandwidth times the arithmetic intensity.
- It was described by Williams, Waterman and Patterson in 2009.

# arithmetic intensity
= Arithmetic intensity is the number of operations done for each byte moved from or to memory.
- A decode step with a batch of one has an intensity of about one operation per byte in fp16.
- Batching raises it, because each weight that is read serves more tokens.

# HBM | high bandwidth memory
= HBM is high bandwidth memory, the large main memory of a GPU.
- An A100 has 40 or 80 GB of it, with a bandwidth of about 1.5 to 2 TB per second.
- It is much larger but much slower than the SRAM on the chip.
- Weights and the KV cache live there.

# SRAM | on-chip memory
= SRAM is the small and very fast memory on the chip itself, used for shared memory, caches and registers.
- It is many times faster than HBM, but there are only some tens of megabytes of it on a GPU.

# shared memory
= Shared memory is fast on-chip memory that all threads of one thread block can read and write.
- Threads must wait at a barrier before they read what others have written.
- It is divided into 32 banks.

# a bank conflict
= A bank conflict happens when threads of a warp access different addresses in the same bank of shared
  memory.
- The accesses are then served one after another.
- If all threads read the same address there is no conflict, because the value is broadcast.

# a warp
= A warp is a group of 32 threads of an NVIDIA GPU that execute the same instruction together.
- When its threads take different branches, the branches run one after another, which is called divergence.
- Threads of a warp can exchange values directly with shuffle instructions.

# a thread block
= A thread block is a group of threads that run on the same multiprocessor and can share memory and wait
  for each other.
- It is divided into warps of 32 threads.
- Different thread blocks of a kernel run in any order.

# coalescing | coalesced memory access
= Coalescing means that neighbouring threads of a warp read neighbouring addresses, so the hardware joins
  them into few memory transactions.
- Scattered addresses need more transactions and waste bandwidth.
- Thirty-two threads that read four bytes each in a row need only 128 bytes of traffic.

# a kernel | a GPU kernel
= A kernel is a function that runs on the GPU in many threads at once.
- Each thread finds its share of the work from its own index.
- Starting a kernel takes a few microseconds, so many tiny kernels are slow.

# kernel fusion
= Kernel fusion joins several operations into one kernel, so that intermediate results need not go through
  memory.
- FlashAttention is a famous example: it fuses two matrix products and a softmax.

# memory-bound | a memory-bound kernel
= A kernel is memory-bound when moving the data takes longer than computing with it.
- Decode is the usual example.
- Faster memory or less traffic helps, but more arithmetic units do not.

# compute-bound | a compute-bound kernel
= A kernel is compute-bound when the arithmetic takes longer than moving the data.
- The prefill of a long prompt is the usual example.

# a tensor core
= A tensor core is a unit of a GPU that multiplies small matrices and adds the result in one instruction.
- It usually takes fp16 or bf16 inputs and can add up in fp32.
- Most of the arithmetic of a modern GPU comes from its tensor cores.

# memory bandwidth
= Memory bandwidth is the number of bytes that can be moved from or to memory per second.
- It limits decode, because all weights must be read for every step.
- A model with 14 GB of weights and a bandwidth of 2 TB per second needs at least 7 milliseconds per step.

# a FLOP | FLOPs
= A FLOP is one floating point operation, such as an addition or a multiplication.
- A forward pass needs about two FLOPs per parameter for each token.
"""
