"""`LLM`: a model, and prompts in, texts out. The first thing that most people meet.

    from minivllm import LLM, SamplingParams
    llm = LLM("path/to/hf-folder")
    for output in llm.generate(["Once upon a time"], SamplingParams(temperature=0, max_tokens=40)):
        print(output.outputs[0].text)

Names, defaults and results are vLLM's, so examples written for it run with the import changed. Behind it
stands an ordinary `Engine`: `generate` checks all prompts, queues them, and calls `step` until all are done.
Its arguments are those of `minivllm/engine/engine_args.py`.

Read next: `minivllm/engine/engine.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from itertools import count, islice
from numbers import Integral
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar

from minivllm.engine.admission import NO_DRAFTS
from minivllm.engine.create_engine import create_engine
from minivllm.engine.engine_args import EngineArgs
from minivllm.engine.engine_books import Call
from minivllm.engine.progress import ProgressBar
from minivllm.engine.prompts import NO_TOKENIZER, Prompt, TokenizedPrompt, tokenize_prompt
from minivllm.engine.request_state import RequestState
from minivllm.engine.settings import documented, takes_settings
from minivllm.engine.turns import Turns
from minivllm.model.chat.template import render_chat
from minivllm.model.tokenizer import Tokenizer
from minivllm.outputs import BeamSearchOutput, BeamSearchSequence, RequestOutput, refuse_errors
from minivllm.sampling_params import BeamSearchParams, RequestOutputKind, SamplingParams
from minivllm.validation import check_boolean, check_integer, check_list, check_text, shown

P = ParamSpec("P")
Result = TypeVar("Result")

Params: TypeAlias = SamplingParams | Sequence[SamplingParams] | None


def _in_turn(method: Callable[Concatenate[LLM, P], Result]) -> Callable[Concatenate[LLM, P], Result]:
    """A method that needs the engine for itself: of all calls, those of other threads too, one at a time.

    It finds an engine without requests of earlier calls, however those have ended, and leaves it like this.
    """

    @wraps(method)
    def call(self: LLM, /, *args: P.args, **kwargs: P.kwargs) -> Result:
        self._turns.wait_for(sys._getframe())  # as long as this function runs, it is this call's turn
        try:
            self.engine.end_call()  # a second interrupt may have kept the last one from doing so
            return method(self, *args, **kwargs)
        finally:
            self.engine.end_call()
            self._turns.pass_on()

    return call


class LLM:
    """Offline generation with continuous batching.

    Any thread may call it: calls are served one at a time, in the order in which they came, and each returns
    its own outputs. Ctrl-C ends a call, and the next one finds everything in order. The `engine` itself
    belongs to one thread. Requests that were added to it directly are computed along with those of a call;
    the next `engine.step()` returns their outputs.

    Raises:
        ValueError: an argument, a file or a number that cannot work, named, with what is allowed.
        TypeError: an argument that there is not; the message lists those there are.
    """

    @takes_settings(EngineArgs)
    def __init__(self, model: str | Path, **settings: Any) -> None:
        self.engine = create_engine(EngineArgs(model, **settings))
        self._turns = Turns()
        self._numbers = count()

    @_in_turn
    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: Params = None,
        *,
        use_tqdm: bool = True,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Continue each prompt.

        The model's beginning token (BOS) is put before a text, so one that a chat template wrote would have
        two: use `chat`, or give its token ids.

        What company a prompt has changes neither the random draws nor, on `numba-cpu`, a bit of any logit.
        Other backends sum in another order in another batch, so logprobs may differ in their last digits, and
        two tokens that are all but equally likely may change places; `batch_invariant` forbids that, or is
        refused (`docs/batch-invariance.md`).

        Args:
            prompts: one or many (see `Prompt`).
            sampling_params: one for all, or one for each prompt; `get_default_sampling_params()` if None.
            use_tqdm: show a progress bar.
            priority: one number for each prompt.

        Returns:
            One finished output for each prompt, in their order.

        Raises:
            ValueError: a prompt that cannot be served, by its number and the reason. Nothing was computed.
            RuntimeError: it is called from within another call, by a policy, say.
            FailedRequestsError: the model's logits for a prompt are no numbers (NaN, infinity). All other
                prompts were finished first: the error's `outputs` has them.
        """
        many = _as_list(prompts)
        tokenized = self._tokenize(many)
        params = _one_for_each(sampling_params, len(many), self.get_default_sampling_params())
        return self._run(tokenized, params, priority, use_tqdm)

    @_in_turn
    def chat(
        self,
        messages: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        sampling_params: Params = None,
        *,
        use_tqdm: bool = True,
        chat_template: str | Path | None = None,
        chat_template_content_format: str = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation, or several, with the model's own chat template.

        Args:
            messages: a list of `{"role": …, "content": …}`, or a list of such lists. A content is a text, a
                list of parts (`{"type": "text", "text": …}`), or nothing beside `tool_calls`.
            sampling_params, use_tqdm: as for `generate`.
            chat_template: another template: its text, its file, or the name of one of the model's.
            chat_template_content_format: "string" or "openai" (parts): what the template expects a content to
                be; "auto" finds out.
            add_generation_prompt: end the prompt where the assistant's answer begins.
            continue_final_message: end it within the last message, which the model continues; needs
                `add_generation_prompt=False`.
            tools, documents: JSON schemas of functions, and texts, for templates that know them.
            chat_template_kwargs: what else the template may read, such as `{"enable_thinking": False}`.

        Raises:
            ValueError: as for `generate`; or a message or argument of another form, by its place; or the
                template refuses the messages, with its words.
        """
        if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence) or not messages:
            raise ValueError(
                f"messages must be a list of messages, or of such lists, and not empty; got {shown(messages)}"
            )
        many: list[Any] = [messages] if isinstance(messages[0], Mapping) else list(messages)
        tokenizer = self.get_tokenizer()
        template = tokenizer.chat_templates.load(chat_template)
        tokenized: list[TokenizedPrompt] = []
        for conversation in many:
            text = render_chat(
                tokenizer.chat_templates,
                conversation,
                chat_template=template,
                chat_template_content_format=chat_template_content_format,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tools=tools,
                documents=documents,
                chat_template_kwargs=chat_template_kwargs,
            )
            check_text("messages", text)
            # The template writes the special tokens itself, the first one included.
            tokenized.append(TokenizedPrompt(text, tokenizer.encode(text, add_special_tokens=False)))
        params = _one_for_each(sampling_params, len(many), self.get_default_sampling_params())
        return self._run(tokenized, params, None, use_tqdm)

    @_in_turn
    def beam_search(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: BeamSearchParams,
        *,
        use_tqdm: bool = False,
    ) -> list[BeamSearchOutput]:
        """Search for the likeliest continuations of each prompt.

        The search follows Hugging Face's definitions (`minivllm/decoding/beam_search.py`); its beams share
        the blocks of everything that they have in common.

        Returns:
            For each prompt its best sequences, the best first, at most `params.beam_width`.

        Raises:
            ValueError: as for `generate`; or the beam width is above the vocabulary's size.
        """
        if not isinstance(params, BeamSearchParams):
            raise ValueError(f"params must be a BeamSearchParams, got {shown(params)}")
        if self.engine.speculation:
            raise ValueError("beam_search cannot be used where speculative_config is set: " + NO_DRAFTS)
        many = _as_list(prompts)
        tokenized = self._tokenize(many)
        outputs = self._run(tokenized, [params] * len(many), None, use_tqdm)
        return [self._beam_search_output(output) for output in outputs]

    @_in_turn
    def reset_prefix_cache(self) -> bool:
        """Forget all cached prefixes. Returns whether the cache is empty now: what is in use stays."""
        return self.engine.reset_prefix_cache()

    def get_tokenizer(self) -> Tokenizer:
        """The tokenizer in use; `ValueError` if the model has none."""
        if self.engine.tokenizer is None:
            raise ValueError(NO_TOKENIZER)
        return self.engine.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What `generate` and `chat` use if nothing is given: see the setting `generation_config`."""
        return replace(self.engine.default_params)

    @_in_turn
    def close(self) -> None:
        """End the trace, if one is recorded, and the processes of other ranks, if there are any."""
        self.engine.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _beam_search_output(self, output: RequestOutput) -> BeamSearchOutput:
        prompt, tokenizer = list(output.prompt_token_ids), self.engine.tokenizer
        sequences = []
        for found in output.outputs:
            tokens = [*prompt, *found.token_ids]
            assert found.cumulative_logprob is not None and found.score is not None, "a beam has both"
            sequences.append(
                BeamSearchSequence(
                    tokens=tokens,
                    cum_logprob=found.cumulative_logprob,
                    text=tokenizer.decode(tokens, skip_special_tokens=True) if tokenizer else "",
                    score=found.score,
                    finish_reason=found.finish_reason,
                    stop_reason=found.stop_reason,
                )
            )
        return BeamSearchOutput(sequences)

    def _tokenize(self, prompts: Sequence[Prompt]) -> list[TokenizedPrompt]:
        named = ((f"prompts[{index}]", prompt) for index, prompt in enumerate(prompts))
        return [tokenize_prompt(prompt, name, self.engine.tokenizer) for name, prompt in named]

    def _run(
        self,
        tokenized: Sequence[TokenizedPrompt],
        params: Sequence[SamplingParams | BeamSearchParams],
        priority: Sequence[int] | None,
        use_tqdm: bool,
    ) -> list[RequestOutput]:
        check_boolean("use_tqdm", use_tqdm)
        priorities = _priorities(priority, len(tokenized))
        free = (str(number) for number in self._numbers if not self.engine.is_in_use(str(number)))
        ids = list(islice(free, len(tokenized)))
        requests = [  # all are checked before any is queued
            self._make_request(*of_one, index=index)
            for index, of_one in enumerate(zip(ids, tokenized, params, priorities, strict=True))
        ]
        call = self.engine.begin_call(ids)
        try:
            for request in requests:
                self.engine.enqueue(request)
            return self._drain(ids, call, use_tqdm)
        finally:
            if self.engine.recorder:
                self.engine.recorder.flush()

    def _make_request(
        self,
        request_id: str,
        prompt: TokenizedPrompt,
        params: SamplingParams | BeamSearchParams,
        priority: int,
        index: int,
    ) -> RequestState:
        """The request for one prompt, which is named if it is refused."""
        if isinstance(params, SamplingParams):
            params = replace(params, output_kind=RequestOutputKind.FINAL_ONLY)
        try:
            return self.engine.make_request(
                request_id,
                prompt.token_ids,
                params,
                prompt=prompt.text,
                priority=priority,
                cache_salt=prompt.cache_salt,
            )
        except ValueError as error:
            raise ValueError(f"prompts[{index}]: {error}") from None

    def _drain(self, ids: list[str], call: Call, use_tqdm: bool) -> list[RequestOutput]:
        done: dict[str, RequestOutput] = {}
        with ProgressBar(total=len(ids), desc="Generating", unit="request", disable=not use_tqdm) as bar:
            for request_id in ids:
                while request_id not in done:
                    if request_id not in self.engine.requests:
                        raise RuntimeError(f"request {request_id!r} was aborted while it was waited for")
                    for output in self.engine.step(call):
                        done[output.request_id] = output
                        bar.update()
        return refuse_errors([done[request_id] for request_id in ids])


LLM.__doc__ = documented(LLM.__doc__, EngineArgs)


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or many, as a list. A list of integers is one prompt, not many."""
    if isinstance(prompts, str | Mapping):
        return [prompts]
    try:
        items: list[Any] = check_list("prompts", prompts, of="prompts")
    except ValueError:
        raise ValueError(
            f"prompts must be a string, a dictionary, or a list of those; got {shown(prompts)}"
        ) from None
    return [items] if items and all(isinstance(item, Integral) for item in items) else items


def _one_for_each(params: Params, count: int, default: SamplingParams) -> list[SamplingParams]:
    """One `SamplingParams` for each of `count` prompts."""
    if params is None or isinstance(params, SamplingParams):
        return [params or default] * count
    if not isinstance(params, Sequence) or not all(isinstance(item, SamplingParams) for item in params):
        raise ValueError(f"sampling_params must be a SamplingParams or a list of them, got {shown(params)}")
    if len(params) != count:
        raise ValueError(f"sampling_params has {len(params)} entries for {count} prompts")
    return list(params)


def _priorities(priority: Sequence[int] | None, count: int) -> list[int]:
    """One number for each of `count` prompts."""
    if priority is None:
        return [0] * count
    numbers = [
        check_integer(f"priority[{index}]", number)
        for index, number in enumerate(check_list("priority", priority, of="integers"))
    ]
    if len(numbers) != count:
        raise ValueError(f"priority has {len(numbers)} entries for {count} prompts")
    return numbers
