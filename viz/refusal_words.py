"""What the engine refuses, and what libraries say of damaged data, in the reader's language.

A page hands a run to the engine, and a trace tells of requests that were refused: the engine says why, in
English, with the argument, its value and what is allowed (`minivllm/validation.py`). So does msgspec of a
line that is no event. Here are the forms of these sentences; `tests/viz/test_words_of_others.py`
reads the sources of the ones, and provokes the others.

Read next: `engine_words.py`, the same for what a run was like.
"""

from __future__ import annotations

from viz.engine_words import said_in
from viz.language import N_
from viz.trace_words import DAMAGE

REFUSALS = (
    N_("prompts[{count}]: {what}"),
    N_("request {name}: {what}"),
    N_("{name} must be {what}, got {value}"),
    N_("an integer"),
    N_("an integer of at least {low}"),
    N_("an integer at most {high}"),
    N_("an integer of at least {low} and at most {high}"),
    N_("an integer from 0 to {last} (the vocabulary has {count} tokens)"),
    N_("an integer of at least 1, or a list of token ids"),
    N_("a finite number"),
    N_("a finite number of at least {low}"),
    N_("a finite number of at least {low} and at most {high}"),
    N_("a finite number above {low}"),
    N_("a finite number above {low} and at most {high}"),
    N_("a finite number at most {high}"),
    N_("True or False"),
    N_("one of {list}"),
    N_("a string"),
    N_("a string that is not empty"),
    N_("a text that is not empty"),
    N_("a list of {what}"),
    N_("a name"),
    N_("a dictionary or its JSON"),
    N_("a name that a file can have, of at most {count} characters"),
    N_("a file in a folder that exists"),
    N_("{name} must be text, but its character {count} is none (a lone surrogate): got {value}"),
    N_("{name} has no entry {value}; it has {list}"),
    N_("{name} {path} cannot be read: it is not a file"),
    N_("{name} {path} cannot be read: {why}"),
    N_("{name} must be another file than {other}, got {value} for both"),
    N_("the prompt is empty: it must have at least one token"),
    N_(
        "the prompt has {count} tokens; with max_model_len {length} it may have at most {most}, so "
        "that one token can be generated"
    ),
    N_("{name} must be at most max_num_seqs ({most}), because all its sequences run at once; got {count}"),
    N_(
        "{name} must be at most max_num_batched_tokens ({most}), because all beams advance in the same "
        "step; got {count}"
    ),
    N_(
        "the request can never fit: {prompt} prompt tokens and max_tokens {wanted} for {count} "
        "sequences need {blocks} blocks of {size} tokens, the pool has {pool} ({tokens} tokens)"
    ),
    N_(
        "the request can never fit: {prompt} prompt tokens and max_tokens {wanted} need {blocks} "
        "blocks of {size} tokens, the pool has {pool} ({tokens} tokens)"
    ),
    N_(
        "the request can never fit: {prompt} prompt tokens and output_tokens {output} are {tokens}, "
        "max_model_len is {length}"
    ),
    N_("use_beam_search must be False where speculative_config is set: {why}; got True"),
    N_("preemption_mode is 'swap', but there is no swap space: set swap_space to some GiB"),
    N_("allocator must be 'paged' for a prefix cache or a swap space, got {value}"),
    N_("copy_on_fork must be False where prefix_cache shares blocks, got True"),
    N_(
        "max_num_batched_tokens must be at least max_model_len ({length}) when enable_chunked_prefill "
        "is False, because every prompt must fit in one step; got {count}"
    ),
    N_("{name} is for the method 'draft_model', got {value}"),
    N_("{name} is for the method 'ngram', got {value}"),
    N_("{name} must be at most prompt_lookup_max ({high}), got {low}"),
    N_("{name} must be a folder or a hub id where the method is 'draft_model', got {value}"),
    N_("{name} must be given: most drafts of a sequence in a step"),
    N_("prompts must hold at least one prompt, got none"),
    N_("{path} holds no request: at least one line must be a JSON object"),
    N_("{path} cannot be read: {reason}"),
    N_("{path}, line {number}, has more than {most} bytes"),
    N_("{path}, line {number}: {error}"),
    N_("request_id {value} is that of line {number} already: each must be different"),
    N_("each line must be a JSON object, {example}, got {value}"),
    N_(
        "a request has either prompt (a text) or prompt_tokens (a number of tokens, or a list of token "
        "ids); here both are given"
    ),
    N_(
        "a request has either prompt (a text) or prompt_tokens (a number of tokens, or a list of token "
        "ids); here neither is given"
    ),
    N_(
        "a request has either prompt (a text) or prompt_tokens (a number of tokens, or a list of token "
        "ids); here {what} given"
    ),
    N_("prompt_tokens must have at least one token id, got []"),
    N_("prompt is a text, {text}, and there is no tokenizer here: give prompt_tokens instead"),
    N_("prompt must have at least one token, {text} has none"),
    N_("not JSON: {error}, in {text}"),
    N_("unknown field {value}; there are {list}"),
    N_("the field {name} is missing"),
    N_("the run ended with exit code {count}: {what}"),
    N_("it was stopped before its first step, so there is nothing to open"),
    N_("it ended without a word"),
    N_("the step failed"),
    N_("this version has no {what}"),
    N_("there is no swap space"),
    N_("there is no swap space: only paged memory has one"),
    N_("{count} blocks do not fit into the {room} that are free in the swap space"),
)
KINDS = {"name": r"[\w.\[\]']+", "count": r"-?[\d,.]+"}


def refused_in_words(text: str) -> str:
    """Why the engine refused something, as the reader speaks; as it is, if it is of no known form."""
    return said_in(text, (*REFUSALS, *DAMAGE), KINDS)
