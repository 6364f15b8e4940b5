"""English facts: where keys and values live. The format of the text is explained in `notes.py`."""

NOTES = """
# a KV cache | the key-value cache | the KV cache
= A KV cache stores the keys and values of every token a sequence has already processed, so that attention
  never has to compute them again.
- Each new token adds one key vector and one value vector per layer and per KV head.
- Its size grows linearly with the number of tokens, so long sequences need a lot of memory.
- For Llama-7B in fp16 one token takes 512 KiB, and 2,048 tokens take 1 GiB.
- Without it, every decode step would have to process the whole sequence again.
? How big is the KV cache of Llama-7B? | How much memory does a KV cache need? | How large is a KV cache?
! One token needs 2 times 32 layers times 4,096 numbers times 2 bytes, which is 512 KiB. A sequence of
  2,048 tokens therefore needs 1 GiB.
? Why do we need a KV cache? | Why use a KV cache? | What is a KV cache good for?
! Every new token attends to all earlier tokens. Their keys and values do not change, so keeping them
  saves computing them again at every step.

# PagedAttention | paged attention
= PagedAttention is attention over a KV cache that is cut into blocks of fixed size, and the blocks may
  lie anywhere in memory.
- It borrows the idea of paging from operating systems: a block is like a page and a token is like a byte.
- A block table tells the kernel where each logical block of a sequence is stored.
- It was introduced with vLLM by Kwon and others at SOSP 2023.
- It changes where keys and values are stored, not the result of attention.
? Why does PagedAttention save memory? | How does PagedAttention save memory?
! Memory is given out block by block as a sequence grows, so only the last block of a sequence can be
  partly empty. Blocks can also be shared between sequences.
? How does PagedAttention work?
! The kernel walks the block table of a sequence, fetches keys and values block by block, and combines the
  partial results into the same output as ordinary attention.

# a block table
= A block table maps the logical blocks of a sequence to physical blocks in the cache.
- Entry number i holds the number of the physical block that stores logical block i.
- It plays the part of a page table in an operating system.
- Two sequences share memory when their block tables point to the same physical block.
? How do you find a token with a block table? | How does a block table locate a token?
! Divide the position by the block size. The quotient selects the entry of the block table, and the
  remainder is the offset inside the physical block.

# a physical block
= A physical block is a fixed piece of cache memory with room for the keys and values of a few tokens, for
  example 16.
- All physical blocks have the same size, so any free block can serve any sequence.
- A physical block that several sequences share has a reference count greater than one.

# a logical block
= A logical block is a run of consecutive tokens of one sequence, as long as the block size.
- Logical blocks are numbered in order from zero, while their physical blocks may lie in any order.
- The block table turns a logical block into a physical block.

# a slot
= A slot is the place of one token in the KV cache: a physical block and an offset inside it.
- The slot number is the physical block number times the block size plus the offset.
- The slot mapping tells the kernel where to write the new keys and values of a step.
? How is a slot number computed? | How do you compute a slot?
! Multiply the number of the physical block by the block size and add the offset. With a block size of 16,
  block 3 and offset 5 give slot 53.

# the block pool | a block pool | the free list
= The block pool owns all physical blocks and keeps a list of those that are free.
- Allocating a block takes it from the free list, and freeing it puts it back.
- The pool is created once when the engine starts, so the memory for the cache is never asked for again.

# the block size
= The block size is the number of tokens whose keys and values fit in one block.
- A small block size wastes less memory in the last block, but makes block tables longer.
- A large block size reads memory in longer runs, but wastes more in the last block.
- vLLM uses 16 tokens by default on many devices.
? Does a decode step take a new block for every token? | Does every token need a new block?
! No. A decode step writes into the next slot of the last block, and a new block is taken only when the
  last block is full.

# fragmentation | memory fragmentation
= Fragmentation is memory that is free or reserved but cannot be put to use.
- Internal fragmentation is unused space inside a reserved region.
- External fragmentation is free space in pieces too small or too scattered to serve a request.
- With blocks of one size there is no external fragmentation, and the internal kind is less than one block
  per sequence.
? What is the difference between internal and external fragmentation?
! Internal fragmentation is waste inside what a request was given. External fragmentation is waste between
  the things that were given out.

# memory waste | waste in the KV cache
= Waste is cache memory that is reserved but holds no keys and values in use.
- The vLLM paper found that earlier systems used only 20 to 38 percent of their cache memory for token
  states.
- PagedAttention brings the waste below 4 percent.
- Less waste means more sequences in a batch, and a bigger batch means higher throughput.

# contiguous allocation
= Contiguous allocation reserves one unbroken region per sequence, long enough for the longest output
  allowed.
- It is simple and fast to index, but most of the region is never used when outputs are short.
- It suffers from both internal and external fragmentation.

# a reference count | reference counting
= A reference count says how many sequences use a physical block.
- Sharing a block adds one to the count, and freeing it subtracts one.
- The block returns to the free list only when the count reaches zero.

# copy-on-write | copy on write
= Copy-on-write lets sequences share a block until one of them wants to write into it, and only then makes
  a copy.
- If the reference count of the block is greater than one, the writer takes a new block, copies the
  contents, and changes its own block table.
- If the reference count is one, the writer simply writes in place.
- It makes parallel sampling and beam search cheap, because common tokens are stored once.

# a fork | forking a sequence
= A fork makes a new sequence that starts with the same tokens and shares all physical blocks of its parent.
- Forking copies the block table, not the keys and values, and adds one to each reference count.
- Copy-on-write keeps the two sequences from disturbing each other afterwards.

# prefix caching | automatic prefix caching | a prefix cache
= Prefix caching keeps the blocks of finished work so that a new request with the same beginning can use
  them again.
- A full block is found by a hash of its tokens and of everything before it.
- A hit skips the prefill of the shared tokens and so shortens the time to first token.
- It helps most when many requests share a long system prompt.
- It does not change the output, because the same tokens at the same positions have the same keys and
  values.
? Why must the hash of a block include the earlier tokens? | Why does a block hash cover the whole prefix?
! The keys and values of a token depend on all tokens before it. Equal tokens after different beginnings
  must not be taken for the same block.

# a radix tree | RadixAttention
= A radix tree is a tree whose edges carry runs of tokens, so that sequences with a common prefix share a
  path.
- SGLang uses one to find the longest cached prefix of a request, and calls the method RadixAttention.
- An edge is split when a new sequence leaves it halfway.
- Leaves that no request uses can be evicted, the least recently used first.

# LRU | least recently used
= LRU means least recently used: when room is needed, the entry that was not used for the longest time
  goes first.
- It works well when what was used lately is likely to be used again.
- In a prefix cache only blocks with a reference count of zero may be evicted.

# eviction
= Eviction removes cached blocks that no running sequence uses, to make room for new ones.
- An evicted block must be computed again if its tokens return.
- Blocks with a reference count above zero are never evicted.

# swapping | swap | swapping out
= Swapping moves the blocks of a preempted sequence from GPU memory to CPU memory and later brings them
  back.
- No work is lost, but the blocks must cross the PCIe bus twice.
- It pays off when copying the blocks is quicker than computing them again.

# recomputation | recompute
= Recomputation drops the blocks of a preempted sequence and later computes its keys and values again.
- The prompt and the tokens generated so far are processed together as one prefill, which is fast.
- It needs no CPU memory and no copying.
? Which is better, swapping or recomputation? | What is the difference between swapping and recomputation?
! Swapping costs time on the bus, and recomputation costs arithmetic. Small blocks make swapping slow
  because of many small copies, while recomputation costs the same for every block size.

# virtual memory | paging
= Virtual memory gives a program addresses of its own and maps them page by page to physical memory.
- PagedAttention uses the same idea for the KV cache: the block table is its page table.
- Pages need not be neighbours in physical memory, so there is no external fragmentation.

# a watermark
= A watermark is a small number of free blocks that the scheduler keeps in reserve when it admits new
  requests.
- It leaves running sequences some room to grow, so they are not preempted at once.
"""
