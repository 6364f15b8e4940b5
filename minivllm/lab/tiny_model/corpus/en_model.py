"""English facts: what a language model is made of. The format of the text is explained in `notes.py`."""

NOTES = """
# a token
= A token is the unit of text a language model reads and writes: a word, a piece of a word, or a single
  byte.
- Every token has a number, its position in the vocabulary.
- An English word is often one or two tokens.

# a tokenizer | tokenization
= A tokenizer turns text into a list of token numbers and turns such a list back into text.
- A good one can encode any text and give it back unchanged.
- Each model needs the tokenizer it was trained with.

# BPE | byte pair encoding
= BPE is byte pair encoding: it starts from single characters and joins the most frequent neighbouring
  pair again and again.
- The joined pairs are called merges, and their order is learned from text.
- Common words become one token, and rare words are built from pieces.

# byte fallback
= Byte fallback writes a character that is not in the vocabulary as its UTF-8 bytes, one token per byte.
- So no text is ever unknown to the tokenizer.
- The llama emoji 🦙 takes four byte tokens.

# the vocabulary | a vocabulary
= The vocabulary is the list of all tokens that a model knows.
- The model gives one logit to each entry of it.
- Llama-2 has 32,000 entries, and this tiny model has at most 4,096.

# an embedding | the embedding layer
= An embedding is a vector of numbers that stands for a token inside the model.
- The embedding table has one row for each token of the vocabulary.
- With tied embeddings the same table also turns the last hidden state into logits.

# a transformer | the transformer
= A transformer is a neural network made of layers, each with attention followed by a feed-forward network.
- Attention moves information between tokens, and the feed-forward network works on each token alone.
- It was introduced in 2017 in the paper Attention Is All You Need.

# a large language model | an LLM | a language model
= A large language model is a neural network that predicts the next token from the tokens before it.
- It writes text by predicting one token, adding it to the text, and predicting again.
- Its knowledge is stored in its weights.

# autoregressive generation
= Autoregressive generation produces one token at a time, and each new token depends on all tokens before
  it.
- That is why the tokens of one sequence cannot simply be computed in parallel.

# weights | the weights of a model | parameters (plural)
= Weights are the numbers that a model has learned in training.
- A model with 7 billion weights in fp16 needs about 14 GB of memory.
- They are the same for all requests, so a batch can share them.

# queries, keys and values | query, key and value (plural)
= Queries, keys and values are three vectors that attention computes for every token.
- The query asks, the keys are compared with it, and the values are what is averaged.
- Only keys and values are cached, because a query is needed just once.
? Why are queries not cached? | Why does the KV cache not store queries?
! The query of a token is used only in the step of that token. Later tokens need its key and its value but
  never its query.

# multi-head attention
= Multi-head attention runs several attentions side by side, each with its own queries, keys and values.
- Each head can look for something different.
- The outputs of the heads are joined and mixed by a last matrix.

# grouped-query attention | GQA
= Grouped-query attention lets a group of query heads share one key head and one value head.
- It makes the KV cache as many times smaller as there are query heads in a group.
- With 32 query heads and 8 KV heads the cache is four times smaller.
- It was proposed by Ainslie and others in 2023.

# multi-query attention | MQA
= Multi-query attention lets all query heads share a single key head and value head.
- It is the extreme case of grouped-query attention and was proposed by Shazeer in 2019.

# rotary embedding | RoPE | rotary position embedding
= Rotary embedding marks the position of a token by rotating pairs of numbers in its query and key.
- Positions then enter the score of a query and a key only through the distance between them.
- Each pair turns at its own speed, some fast and some slow.
- The keys in the cache are already rotated, so they keep their position.

# RMSNorm
= RMSNorm divides a vector by its root mean square and multiplies it with learned weights.
- It is simpler than layer normalisation because it does not subtract the mean.

# SwiGLU
= SwiGLU is a feed-forward layer in which one projection, passed through SiLU, gates another.
- Llama uses three matrices for it: gate, up and down.

# softmax
= Softmax turns a list of numbers into probabilities that are positive and add up to one.
- It takes the exponential of each number and divides by the sum.
- Subtracting the maximum first avoids overflow and does not change the result.

# logits (plural)
= Logits are the scores that a model gives to every token of the vocabulary before softmax.
- A higher logit means that the token is more likely.
- Temperature, top-k and top-p all act on them before a token is drawn.

# a causal mask | the causal mask
= A causal mask hides later tokens, so that each token attends only to itself and to those before it.
- It is why keys and values in the cache never change when new tokens arrive.

# the context window | the context length
= The context window is the largest number of tokens that a model can handle in one sequence.
- The prompt and the output share it.

# Llama
= Llama is a family of open language models by Meta that many other models copy in their structure.
- It uses RMSNorm, rotary embedding and SwiGLU.

# the end-of-sequence token | EOS
= The end-of-sequence token is what a model writes to say that the text is finished.
- When it is drawn, the engine stops the sequence and frees its blocks.

# a prompt
= A prompt is the text that a user gives to a language model to continue or to answer.
- Its tokens are processed together in the prefill.

# a chat template
= A chat template turns a list of messages into the one text that the model was trained to read.
- It marks each role, such as user and assistant, with special tokens.
"""
