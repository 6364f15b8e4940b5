"""English facts: choosing tokens, saving bytes, many devices. The format is explained in `notes.py`."""

NOTES = """
# greedy decoding | greedy sampling
= Greedy decoding always takes the token with the highest logit.
- It gives the same output every time, but it can fall into repetition.
- A temperature of zero means greedy decoding.

# sampling
= Sampling draws the next token at random according to the probabilities of the model.
- Temperature, top-k and top-p shape the probabilities before the draw.
- With the same seed the draw can be repeated.

# temperature | the sampling temperature
= Temperature divides the logits before softmax and so controls how random the choice is.
- A low temperature makes the output more certain, and a high temperature makes it more varied.
- At zero the choice is greedy.

# top-k | top-k sampling
= Top-k sampling keeps only the k most likely tokens and draws from them.
- With k equal to one it is the same as greedy decoding.

# top-p | nucleus sampling | top-p sampling
= Top-p sampling keeps the smallest set of tokens whose probabilities add up to at least p, and draws from
  it.
- When the model is sure the set is small, and when it is unsure the set is large.
- It is also called nucleus sampling.
? What is the difference between top-k and top-p?
! Top-k keeps a fixed number of tokens. Top-p keeps as many tokens as are needed to reach a total
  probability of p.

# beam search
= Beam search keeps the few best unfinished sequences, extends each of them, and again keeps the best.
- The number of sequences kept is called the beam width.
- Beams share the blocks of their common beginning, and copy-on-write separates them.
- A beam that is dropped gives its references to blocks back.

# parallel sampling
= Parallel sampling draws several outputs for the same prompt.
- The prompt is processed once, and all outputs share its blocks.
- Copy-on-write makes a copy of the last, partly filled block when the outputs begin to differ.

# speculative decoding
= Speculative decoding lets a cheap draft propose several tokens, which the large model then checks in one
  step.
- With the right acceptance rule the output has exactly the distribution of the large model.
- It helps because checking several tokens costs about as much as producing one when decode is limited by
  memory.
? How does speculative decoding accept tokens? | When is a draft token accepted?
! A draft token is accepted with the probability of the target divided by that of the draft, at most one.
  After the first refusal one token is drawn from the corrected distribution.

# a draft model
= A draft model is a small, fast model that proposes tokens in speculative decoding.
- The more often the large model agrees with it, the greater the gain.

# a repetition penalty
= A repetition penalty lowers the logits of tokens that have already appeared.
- It makes loops less likely, but a strong penalty harms the text.

# perplexity
= Perplexity is the exponential of the average negative log probability of each token.
- A perplexity of one means that every token was predicted with certainty.
- Lower is better, but only models with the same tokenizer can be compared.

# streaming
= Streaming sends each piece of text to the user as soon as it is generated.
- A character made of several byte tokens must be held back until all of its bytes have come.

# quantisation | quantization
= Quantisation stores weights or the KV cache with fewer bits, for example 4 or 8 instead of 16.
- It saves memory and memory traffic, so decode becomes faster.
- Numbers are rounded to a small grid with a scale, so some precision is lost.
? Why does quantisation make decode faster?
! Decode is limited by reading the weights. With 4 bits instead of 16 there are four times fewer bytes to
  read.

# AWQ
= AWQ is activation-aware weight quantisation: it finds the channels that matter by looking at activations
  and protects them by scaling.
- It needs no training, only a small set of texts for calibration.
- It usually stores weights with 4 bits in groups that share a scale.

# GPTQ
= GPTQ quantises a weight matrix column by column and changes the remaining weights to make up for each
  error.
- It uses second-order information from a small set of calibration texts.

# fp16 | half precision
= Fp16 is a floating point format with 16 bits: one for the sign, five for the exponent and ten for the
  fraction.
- Its largest number is 65,504.

# bf16 | bfloat16
= Bf16 is a floating point format with 16 bits that has the range of fp32 but only seven bits of fraction.
- It rarely overflows, and this makes it popular for training.

# tensor parallelism | tensor parallel
= Tensor parallelism splits each weight matrix over several GPUs, and every GPU computes a part of each
  layer.
- The first matrix is split by columns and the second by rows, as in Megatron.
- In the forward pass each layer needs two all-reduce operations, one after attention and one after the
  feed-forward network.
- The KV heads are split too, so each GPU keeps a part of the cache.

# pipeline parallelism | pipeline parallel
= Pipeline parallelism gives each GPU some of the layers and passes activations from one GPU to the next.
- GPUs that wait for work make a bubble, and several batches in flight make the bubble smaller.
? What is the difference between tensor parallelism and pipeline parallelism?
! Tensor parallelism splits every layer and needs much communication. Pipeline parallelism splits the
  stack of layers and only passes activations along.

# data parallelism
= Data parallelism runs full copies of the model, and each copy serves its own requests.
- It raises throughput but does not make a single request faster.

# an all-reduce | all-reduce
= An all-reduce adds up a tensor over all GPUs and gives every GPU the sum.
- Tensor parallelism needs it to join partial results.

# vLLM
= vLLM is an open source engine for serving large language models, built around PagedAttention.
- It began at UC Berkeley, and its paper appeared at SOSP 2023.
- The paper reports 2 to 4 times the throughput of earlier systems at the same latency.

# minivllm
= minivllm is a small and readable implementation of the ideas of vLLM, made for learning.
- It pages the KV cache, batches continuously, and records every step as an event.
- It has lessons with exercises and a viewer for traces.

# SGLang
= SGLang is an open source engine and language for programs that call language models.
- It reuses prefixes through a radix tree.

# a trace | a trace file
= A trace is a file in which the engine writes down every event of a run, one line for each.
- Replaying the events rebuilds the state of the engine after every step.
- The viewer reads the trace and nothing else of the engine.

# an event
= An event is a small record of one thing that happened, such as a block being allocated or a sequence
  being preempted.
- Events are written in order, so they can be replayed.

# a cost model | the simulated executor
= A cost model estimates how long a step would take on a given machine without running it.
- It adds up bytes and operations and takes the larger of the two times.
- With it a scheduler can be studied without a GPU.

# inference
= Inference is the use of a trained model to produce output.
- For a language model it has two kinds of work: prefill and decode.

# a GPU
= A GPU is a processor with thousands of small arithmetic units that work in parallel.
- It has its own fast memory for weights and the KV cache.
"""
