"""English facts: who runs when. The format of the text is explained in `notes.py`."""

NOTES = """
# prefill | the prefill phase
= Prefill processes all prompt tokens at once, fills the KV cache with them, and yields the first new token.
- Its matrices are large, so it is usually limited by computation.
- A longer prompt makes the time to first token longer.

# decode | the decode phase | decoding
= Decode produces the output one token at a time, using the KV cache for everything before it.
- Each step reads all weights and the whole KV cache of the sequence to make a single token, so it is
  usually limited by memory bandwidth.
- Running many sequences in one batch shares the cost of reading the weights.
? What is the difference between prefill and decode? | How do prefill and decode differ?
! Prefill handles all prompt tokens in one step and is limited by computation. Decode handles one token
  per sequence in each step and is limited by memory bandwidth.
? Why is decode slow? | Why is decoding limited by memory bandwidth?
! Each step must read all weights from memory and does little arithmetic with them, so the memory and not
  the arithmetic sets the speed.

# continuous batching | dynamic batching at the level of steps
= Continuous batching decides before every step which sequences run, so that finished ones leave at once
  and waiting ones join at once.
- No sequence has to wait for the longest one of its batch.
- It keeps the batch full and so raises throughput.
- The idea comes from Orca, where it is called iteration-level scheduling.
? Why is continuous batching faster than static batching? | What is the difference between static and
  continuous batching?
! A static batch runs until its longest sequence is done, while places of finished sequences stay empty.
  Continuous batching fills such a place with a waiting request in the very next step.

# static batching
= Static batching takes a group of requests and runs them together until the last one is finished.
- Sequences that finish early leave their place empty.
- New requests wait until the whole batch is done.

# chunked prefill
= Chunked prefill cuts a long prompt into pieces and processes one piece per step together with the
  decodes of other sequences.
- A long prompt then no longer stops all other sequences for the length of its prefill.
- Small chunks give steadier token times, and large chunks finish the prompt sooner.
- Sarathi showed that mixing chunks with decodes makes good use of the GPU.

# preemption
= Preemption takes the blocks of a running sequence away because no free block is left for a sequence that
  needs one.
- The preempted sequence goes back to the waiting queue and later continues where it stopped.
- Usually the sequence that arrived last is preempted first.
- Its blocks are either dropped and recomputed later, or swapped out to CPU memory.
? What happens when there are no free blocks? | What happens when the KV cache is full?
! The scheduler preempts a running sequence, usually the one that came last, and gives its blocks to the
  others. The preempted sequence continues later.

# the scheduler | a scheduler
= The scheduler decides in every step which sequences run and how many tokens each of them processes.
- It makes sure that every token of the step has a slot in the cache.
- It serves running sequences before it admits waiting ones.
- It stays within a token budget per step.

# a request
= A request is one prompt together with its sampling parameters, as a client sent it.
- It may lead to several sequences, for example with parallel sampling or beam search.
- It is finished when all of its sequences are finished.

# a sequence
= A sequence is one list of tokens: the prompt and whatever has been generated after it.
- Every sequence has its own block table.
- It ends with the end-of-sequence token, a stop string, or the length limit.

# a batch | batching
= A batch is the set of sequences that the model processes together in one step.
- A bigger batch uses each weight that was read for more tokens.
- The size of the batch is limited by the memory for the KV cache.

# iteration-level scheduling
= Iteration-level scheduling makes a new choice of sequences before every iteration of the model.
- It was introduced by Orca and is the heart of continuous batching.

# Orca
= Orca is a serving system, published at OSDI 2022, that introduced iteration-level scheduling.
- It also introduced selective batching, which batches all operations except attention.
- It still reserved contiguous memory for each sequence, which vLLM later improved.

# the waiting queue | a waiting queue
= The waiting queue holds requests that have arrived but are not running yet.
- In a first come, first served policy the oldest request is admitted first.
- Preempted sequences return to its front.

# the token budget | a token budget
= The token budget is the largest number of tokens that one step may process.
- Decodes use one token each, and prefill chunks use what is left.
- It bounds the duration of a step and so the delay of every running sequence.

# first come, first served | FCFS
= First come, first served means that requests are admitted in the order of their arrival.
- It is fair and never lets a request starve, but a long request can hold up short ones behind it.

# head-of-line blocking
= Head-of-line blocking means that a long request at the front of a queue makes all those behind it wait.
- Chunked prefill and other policies than first come, first served make it milder.

# throughput
= Throughput is the number of tokens or requests that a system completes per second.
- Bigger batches raise it, as long as there is memory for their KV cache.
? What is the difference between throughput and latency?
! Throughput counts how much work all users together get done per second. Latency is how long one user
  waits. Bigger batches often raise both.

# latency
= Latency is the time from sending a request to receiving its answer.
- For a language model it is the time to first token plus the time of all following tokens.
- Waiting in the queue is part of it.

# TTFT | the time to first token
= TTFT is the time to first token: how long a user waits from sending the request until the first token
  appears.
- It contains the waiting time in the queue and the prefill.
- Prefix caching shortens it.

# TPOT | the time per output token
= TPOT is the time per output token: the average time between two tokens after the first one.
- A TPOT of 50 milliseconds means 20 tokens per second for each user.
- It is set by the decode steps and by the prefills that run in between.

# goodput
= Goodput is the number of requests per second that are served within their latency goals.
- A system can have high throughput and low goodput if many answers come too late.

# a service level objective | an SLO
= A service level objective, or SLO, is a promise such as: 99 percent of requests see their first token
  within one second.
- It is usually stated for a high percentile, because averages hide slow requests.

# an arrival process | Poisson arrivals
= An arrival process describes when requests arrive.
- Benchmarks often use Poisson arrivals, where the gaps between requests are independent and exponential.
"""
