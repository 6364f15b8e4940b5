"""What a request asks for: how to choose each token, and when to stop. vLLM's names and defaults.

Everything that can be checked without a model is checked when the object is made, so that a slip is
reported where it was written and not in the middle of a batch; what needs the vocabulary is checked by
`verify`, before the request is queued.

Source: vLLM's `SamplingParams`. Read next: `minivllm/decoding/sampler.py` for what the numbers do.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from minivllm.structured_outputs import StructuredOutputsParams
from minivllm.validation import (
    check_boolean,
    check_integer,
    check_list,
    check_number,
    check_text,
    check_token_ids,
    shown,
)

GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy: dividing by them would overflow and change nothing."""

ALLOWED_NUMBERS: dict[str, dict[str, float]] = {
    "length_penalty": {"at_least": -20, "at_most": 20},
    "presence_penalty": {"at_least": -2, "at_most": 2},
    "frequency_penalty": {"at_least": -2, "at_most": 2},
    # Beyond these, one request's numbers would overflow and stop the whole batch.
    "repetition_penalty": {"at_least": 1e-6, "at_most": 1e6},
    "temperature": {"at_least": 0, "at_most": 1e6},
    "top_p": {"more_than": 0, "at_most": 1},
    "min_p": {"at_least": 0, "at_most": 1},
}
"""What the numbers of a request may be."""


class RequestOutputKind(enum.Enum):
    """What each step's output of a request contains."""

    CUMULATIVE = 0
    """Everything so far."""
    DELTA = 1
    """Only what is new."""
    FINAL_ONLY = 2
    """Nothing until the end, then everything."""


@dataclass
class SamplingParams:
    """How to sample, and when to stop.

    Attributes:
        n: outputs for each prompt. They share the prompt's blocks; output i has the seed `seed + i`.
            At temperature 0 they are the same text n times (vLLM refuses n above 1 there).
        presence_penalty: subtracted once from the logit of every token that the output has, −2 … 2.
        frequency_penalty: subtracted for every time that the output has the token, −2 … 2.
        repetition_penalty: above 1 makes tokens of prompt and output less likely, below 1 more.
        temperature: divides the logits; 0 is greedy.
        top_p: keep the fewest tokens whose probabilities add up to this, above 0, at most 1.
        top_k: keep this many most likely tokens; 0 or −1 keeps all.
        min_p: keep tokens at least this many times as likely as the likeliest, 0 … 1.
        seed: of this request's own random stream; one derived from the engine's if None or −1.
        stop: strings that end the output, which is cut before them.
        stop_token_ids: tokens that end the output.
        ignore_eos: the model's own end-of-sequence token does not end the output.
        max_tokens: most output tokens; as many as model and cache allow if None.
        min_tokens: no stop token, end-of-sequence token or stop string counts before so many tokens.
        logprobs: report this many most likely tokens at each step, and the chosen one; −1 for all.
        prompt_logprobs: the same for each token of the prompt.
        detokenize: turn tokens into text.
        skip_special_tokens: leave special tokens out of the text.
        spaces_between_special_tokens: accepted for vLLM's sake; makes no difference, because the
            `tokenizers` library puts no spaces there.
        include_stop_str_in_output: keep the stop string, or the stop token's text, in the text.
        logit_bias: added to the logits of these tokens, each clamped to −100 … 100.
        allowed_token_ids: only these may be chosen.
        bad_words: texts whose tokens must not be completed.
        structured_outputs: what shape the output must have: JSON by a schema, a regular expression, one of
            several choices, a grammar. It ends when nothing can come any more, whatever `min_tokens` and
            `ignore_eos` say.
        output_kind: what `Engine.step` returns for this request.
        best_of: compute so many outputs and return the `n` likeliest; with beam search, the beam width.
            `n` if None.
        use_beam_search: search for the likeliest outputs instead of sampling (older vLLM's spelling;
            `LLM.beam_search` is the newer one). Needs a temperature of 0 (or 1, the default), and knows
            no penalties, stop strings or log-probabilities. Outputs come when all is done.
        length_penalty: a beam's score is divided by its length to this power: above 0 favours long ones.
        early_stopping: when a beam search ends. False: when a better one is unlikely. True: as soon as
            there are enough finished ones. "never": when a better one is impossible.

    Raises:
        TypeError: there is no argument of this name.
        ValueError: an argument out of range; the message has its name, its value and what is allowed.
    """

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: Sequence[int] | None = None
    bad_words: Sequence[str] | None = None
    structured_outputs: StructuredOutputsParams | None = None
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    best_of: int | None = None
    use_beam_search: bool = False
    length_penalty: float = 1.0
    early_stopping: bool | str = False

    def __new__(cls, *_: object, **named: object) -> SamplingParams:
        known = [field.name for field in fields(cls)]
        for name in named:
            if name not in known:
                raise TypeError(f"SamplingParams has no argument {name!r}; it has {', '.join(known)}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_lengths()
        for name in (
            "use_beam_search",
            "ignore_eos",
            "detokenize",
            "skip_special_tokens",
            "spaces_between_special_tokens",
            "include_stop_str_in_output",
        ):
            check_boolean(name, getattr(self, name))
        self.stop = _texts("stop", self.stop)
        self.bad_words = _texts("bad_words", self.bad_words)
        named = [] if self.stop_token_ids is None else self.stop_token_ids
        self.stop_token_ids = check_token_ids("stop_token_ids", named, may_be_set=True)
        if self.allowed_token_ids is not None:
            self.allowed_token_ids = check_token_ids(
                "allowed_token_ids", self.allowed_token_ids, may_be_set=True
            )
            if not self.allowed_token_ids:
                raise ValueError("allowed_token_ids must be None or name at least one token, got []")
        if self.logit_bias is not None:
            self.logit_bias = _biases(self.logit_bias)
        if self.structured_outputs is not None:
            if not isinstance(self.structured_outputs, StructuredOutputsParams):
                raise ValueError(
                    f"structured_outputs must be a StructuredOutputsParams, got "
                    f"{shown(self.structured_outputs)}"
                )
            self.structured_outputs = replace(self.structured_outputs)  # what the caller asks for now
        if self.stop and not self.detokenize:
            raise ValueError(
                f"stop must be empty when detokenize is False: without text no string can be found "
                f"in it; got {self.stop!r}"
            )
        if not isinstance(self.output_kind, RequestOutputKind):
            raise ValueError(f"output_kind must be a RequestOutputKind, got {shown(self.output_kind)}")
        if self.output_kind is RequestOutputKind.DELTA and self.width > self.n:
            raise ValueError(
                f"output_kind must not be DELTA where best_of ({self.width}) is above n ({self.n}): which "
                "outputs are the likeliest is known at the end"
            )
        if self.use_beam_search:
            self._check_beam_search()
        elif self.length_penalty != 1 or self.early_stopping is not False:
            raise ValueError(
                f"length_penalty and early_stopping belong to beam search: set use_beam_search=True, "
                f"or leave them alone; got {self.length_penalty} and {self.early_stopping!r}"
            )

    @property
    def width(self) -> int:
        """Sequences that one request may come to: `best_of`, or `n`."""
        return self.n if self.best_of is None else self.best_of

    @property
    def is_greedy(self) -> bool:
        """Is the likeliest token always chosen?"""
        return self.temperature < GREEDY_BELOW

    def verify(self, vocab_size: int, *, has_tokenizer: bool) -> None:
        """Check what depends on the model.

        Raises:
            ValueError: a token id outside the vocabulary, more logprobs than tokens, or text to look for
                where there is no tokenizer.
        """
        if self.use_beam_search and self.width > vocab_size:
            raise ValueError(
                f"beam_width (best_of) must be at most {vocab_size}, the vocabulary's size, got {self.width}"
            )
        biased = () if self.logit_bias is None else tuple(self.logit_bias)
        named = {
            "stop_token_ids": self.stop_token_ids or (),
            "allowed_token_ids": self.allowed_token_ids or (),
            "logit_bias": biased,
        }
        for name, ids in named.items():
            for token in ids:
                if token >= vocab_size:
                    raise ValueError(
                        f"{name} must name tokens from 0 to {vocab_size - 1} (the vocabulary has "
                        f"{vocab_size}), got {token}"
                    )
        for name in ("logprobs", "prompt_logprobs"):
            if (getattr(self, name) or 0) > vocab_size:
                raise ValueError(
                    f"{name} must be at most {vocab_size}, the vocabulary's size, got {getattr(self, name)}"
                )
        for name in ("stop", "bad_words", "structured_outputs"):
            if getattr(self, name) and not has_tokenizer:
                raise ValueError(
                    f"{name} needs a tokenizer, and this model has none; got {shown(getattr(self, name))}"
                )

    def _check_numbers(self) -> None:
        self.n = check_integer("n", self.n, at_least=1)
        if self.best_of is not None:
            self.best_of = check_integer("best_of", self.best_of, at_least=1)
            if self.best_of < self.n:
                raise ValueError(f"best_of must be at least n ({self.n}), got {self.best_of}")
        self.top_k = check_integer("top_k", self.top_k, at_least=-1)
        if self.seed is not None:
            seed = check_integer("seed", self.seed, at_least=-(2**63), at_most=2**63 - 1)
            self.seed = None if seed == -1 else seed  # as in vLLM, where clients of old say "any" like this
        for name, allowed in ALLOWED_NUMBERS.items():
            setattr(self, name, check_number(name, getattr(self, name), **allowed))
        ending = self.early_stopping
        if not isinstance(ending, bool) and not (isinstance(ending, str) and ending == "never"):
            raise ValueError(f"early_stopping must be True, False or 'never', got {shown(ending)}")

    def _check_beam_search(self) -> None:
        """Refuse what a beam search would have to ignore."""
        if self.temperature not in (0, 1):
            raise ValueError(
                f"temperature must be 0 when use_beam_search is True: the search takes the likeliest beams "
                f"and draws nothing at random; got {self.temperature}"
            )
        unused = {
            "presence_penalty": 0,
            "frequency_penalty": 0,
            "repetition_penalty": 1,
            "top_p": 1,
            "top_k": (0, -1),
            "min_p": 0,
            "min_tokens": 0,
            "stop": [],
            "bad_words": [],
            "logprobs": None,
            "prompt_logprobs": None,
            "logit_bias": None,
            "allowed_token_ids": None,
        }
        for name, default in unused.items():
            value = getattr(self, name)
            if value not in default if isinstance(default, tuple) else value != default:
                raise ValueError(
                    f"{name} must be left at its default when use_beam_search is True, got {shown(value)}"
                )
        if self.output_kind is RequestOutputKind.DELTA:
            raise ValueError(
                "output_kind must not be DELTA with beam search: a beam may be replaced as a whole"
            )

    def _check_lengths(self) -> None:
        if self.max_tokens is not None:
            self.max_tokens = check_integer("max_tokens", self.max_tokens, at_least=1)
        self.min_tokens = check_integer("min_tokens", self.min_tokens, at_least=0)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(
                f"min_tokens must be at most max_tokens ({self.max_tokens}), got {self.min_tokens}"
            )
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                setattr(self, name, check_integer(name, getattr(self, name), at_least=-1))


def _texts(name: str, value: object) -> list[str]:
    """None, one string or several, as a list of strings that are not empty."""
    if value is None:
        return []
    texts = [value] if isinstance(value, str) else check_list(name, value, of="strings", may_be_set=True)
    return [check_text(f"{name}[{index}]", text, may_be_empty=False) for index, text in enumerate(texts)]


def _biases(value: object) -> dict[int, float]:
    if not isinstance(value, Mapping):
        raise ValueError(f"logit_bias must map token ids to numbers, got {shown(value)}")
    biases = {}
    for key, bias in value.items():
        # JSON has no keys but strings. No vocabulary has ids of more than nine digits.
        named = int(key) if isinstance(key, str) and key.isdecimal() and len(key) < 10 else key
        token = check_integer("logit_bias: a token id", named, at_least=0)
        biases[token] = min(100.0, max(-100.0, check_number(f"logit_bias[{token}]", bias)))
    return biases


@dataclass
class BeamSearchParams:
    """What `LLM.beam_search` looks for (vLLM's names and defaults).

    Attributes:
        beam_width: beams kept at each step, and sequences returned.
        max_tokens: most tokens of an output.
        ignore_eos: the end-of-sequence token does not end a beam.
        temperature: divides the logits before they are made probabilities; 0 (or 1) leaves them alone.
        length_penalty: a sequence's score is its log-probability divided by length ** length_penalty.

    Raises:
        ValueError: an argument out of range; the message has its name, its value and what is allowed.
    """

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0

    def __post_init__(self) -> None:
        self.beam_width = check_integer("beam_width", self.beam_width, at_least=1)
        self.max_tokens = check_integer("max_tokens", self.max_tokens, at_least=1)
        check_boolean("ignore_eos", self.ignore_eos)
        for name in ("temperature", "length_penalty"):
            setattr(self, name, check_number(name, getattr(self, name), **ALLOWED_NUMBERS[name]))

    def to_sampling_params(self) -> SamplingParams:
        """The same search in the engine's words. `temperature` has no place there: see `LLM.beam_search`."""
        return SamplingParams(
            n=self.beam_width,
            use_beam_search=True,
            temperature=0,
            max_tokens=self.max_tokens,
            ignore_eos=self.ignore_eos,
            length_penalty=self.length_penalty,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )


def own_copy(params: SamplingParams | BeamSearchParams | None) -> SamplingParams | BeamSearchParams:
    """What the caller asks for now (vLLM's defaults if None), whatever it does with its object later.

    Raises:
        ValueError: it is something else, or was changed to what its constructor refuses.
    """
    if params is None:
        return SamplingParams()
    if not isinstance(params, SamplingParams | BeamSearchParams):
        raise ValueError(f"params must be a SamplingParams or a BeamSearchParams, got {shown(params)}")
    return replace(params)  # checks all of it again


def in_sampling_params(params: SamplingParams | BeamSearchParams) -> SamplingParams:
    """The same as `SamplingParams`, whichever of vLLM's two ways to ask for a search was used."""
    return params.to_sampling_params() if isinstance(params, BeamSearchParams) else params
