"""Structured output: an output that must parse, because no token is allowed that could keep it from parsing.

A schema, a regular expression, a list of choices, a grammar and free text with tags in it all become the same
thing: rules, each an automaton over bytes, which may call each other. Where the automaton stands after the
output so far, it knows which bytes may come next; so it knows which *tokens* may, by walking the vocabulary
as a tree of bytes. All others are struck out before a token is chosen:

    schema, regex,     expressions      rules with        states,        which tokens      logits of all
    choice, grammar ─►  (syntax    ──►  automata   ──►  a stack   ──►   are allowed  ──►  others become
                         trees)         over bytes       of them          (a mask)            −infinity

    regex.py  gbnf.py   expressions.py  rules.py      pushdown.py        vocabulary.py      progress.py
    json_schema.py …    characters.py                                    plain_text.py      (and the sampler)
                                                                         token_masks.py

Every rule is trimmed: what can never end is taken out when it is made. So from every state that is reached,
some text leads to the end; and as every byte that a rule uses is a token by itself, some tokens do. No output
can get stuck, and one that `max_tokens` cuts off is the beginning of something that parses.

`structured_outputs_config` may name another engine for the same structures: `guidance.py`,
`guided_progress.py`.

Everything here is plain Python that decides; what meets the logits is in `../logits_processors.py`.

Sources: Willard and Louf, "Efficient Guided Generation for Large Language Models" (2023), for automata and
the index of allowed tokens; Dong et al., "XGrammar" (2024), for what does not depend on the stack;
llama.cpp's grammars; `llguidance` for the vocabulary as a tree. Read next: `expressions.py`, then in the
order above.
"""
