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

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TypeAlias

from tqdm.auto import tqdm

from minivllm.engine.create_engine import create_engine
from minivllm.engine.engine_args import EngineArgs
from minivllm.engine.settings import documented, takes_settings
from minivllm.model.chat_template import load_chat_template, render_chat
from minivllm.model.tokenizer import Tokenizer
from minivllm.outputs import BeamSearchOutput, BeamSearchSequence, RequestOutput
from minivllm.sampling_params import BeamSearchParams, RequestOutputKind, SamplingParams
from minivllm.validation import check_integer

Prompt: TypeAlias = str | Mapping[str, Any] | Sequence[int]
"""A text, `{"prompt": text}`, `{"prompt_token_ids": [...]}`, or a list of token ids. A dictionary may also
have a `cache_salt`: cached prefixes are shared only among prompts with the same one."""

Params: TypeAlias = SamplingParams | Sequence[SamplingParams] | None


class TokenizedPrompt(NamedTuple):
    """A prompt as the engine takes it."""

    text: str | None
    token_ids: list[int]
    cache_salt: str | None = None


class LLM:
    """Offline generation with continuous batching.

    Raises:
        ValueError: an argument, a file or a number that cannot work, named, with what is allowed.
        TypeError: an argument that there is not; the message lists those there are.
    """

    @takes_settings(EngineArgs)
    def __init__(self, model: str | Path, **settings: Any) -> None:
        self.engine = create_engine(EngineArgs(model, **settings))
        self._next_request = 0

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: Params = None,
        *,
        use_tqdm: bool = True,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Continue each prompt.

        Args:
            prompts: one or many (see `Prompt`).
            sampling_params: one for all, or one for each prompt; `SamplingParams()` if None.
            use_tqdm: show a progress bar.
            priority: one number for each prompt.

        Returns:
            One finished output for each prompt, in their order.

        Raises:
            ValueError: a prompt that cannot be served, by its number and the reason. Nothing was computed.
        """
        many = _as_list(prompts)
        tokenized = [self._tokenize(prompt, f"prompts[{index}]") for index, prompt in enumerate(many)]
        return self._run(tokenized, _one_for_each(sampling_params, len(many)), priority, use_tqdm)

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
                f"messages must be a list of messages, or of such lists, and not empty; got {messages!r}"
            )
        many: list[Any] = [messages] if isinstance(messages[0], Mapping) else list(messages)
        tokenizer, template = self.get_tokenizer(), load_chat_template(chat_template)
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
            # The template writes the special tokens itself, the first one included.
            tokenized.append(TokenizedPrompt(text, tokenizer.encode(text, add_special_tokens=False)))
        return self._run(tokenized, _one_for_each(sampling_params, len(many)), None, use_tqdm)

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
            raise ValueError(f"params must be a BeamSearchParams, got {params!r}")
        many = _as_list(prompts)
        tokenized = [self._tokenize(prompt, f"prompts[{index}]") for index, prompt in enumerate(many)]
        outputs = self._run(tokenized, [params] * len(many), None, use_tqdm)
        return [self._beam_search_output(output) for output in outputs]

    def reset_prefix_cache(self) -> bool:
        """Forget all cached prefixes. Returns whether the cache is empty now: what is in use stays."""
        return self.engine.reset_prefix_cache()

    def get_tokenizer(self) -> Tokenizer:
        """The tokenizer in use; `ValueError` if the model has none."""
        if self.engine.tokenizer is None:
            raise ValueError("this model has no tokenizer: give prompts as token ids (`prompt_token_ids`)")
        return self.engine.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What `generate` uses if nothing is given."""
        return SamplingParams()

    def close(self) -> None:
        """End the trace, if one is recorded."""
        if self.engine.recorder:
            self.engine.recorder.close()

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

    def _tokenize(self, prompt: Prompt, name: str) -> TokenizedPrompt:
        """A prompt in any form, with its token ids."""
        text: Any = None
        ids: Any = prompt
        salt: Any = None
        if isinstance(prompt, str):
            text, ids = prompt, None
        elif isinstance(prompt, Mapping):
            text, ids, salt = (prompt.get(key) for key in ("prompt", "prompt_token_ids", "cache_salt"))
        if hasattr(ids, "tolist"):
            ids = ids.tolist()  # an array or a tensor of token ids
        if isinstance(ids, Sequence) and not isinstance(ids, str | bytes):
            return TokenizedPrompt(text, list(ids), salt)
        if isinstance(text, str) and ids is None:
            # A tokenizer may turn no text at all into its one beginning token, which is not meant.
            return TokenizedPrompt(text, self.get_tokenizer().encode(text) if text else [], salt)
        raise ValueError(
            f"{name} must be a string, a list of token ids, or a dictionary with 'prompt' (a string) or "
            f"'prompt_token_ids' (a list of integers); got {prompt!r}"
        )

    def _run(
        self,
        tokenized: Sequence[TokenizedPrompt],
        params: Sequence[SamplingParams | BeamSearchParams],
        priority: Sequence[int] | None,
        use_tqdm: bool,
    ) -> list[RequestOutput]:
        priorities = [0] * len(tokenized) if priority is None else list(priority)
        if len(priorities) != len(tokenized):
            raise ValueError(f"priority has {len(priorities)} entries for {len(tokenized)} prompts")
        ids = [str(self._next_request + index) for index in range(len(tokenized))]
        requests = []
        for index, prompt in enumerate(tokenized):  # all are checked before any is queued
            check_integer(f"priority[{index}]", priorities[index])
            wanted = params[index]
            if isinstance(wanted, SamplingParams):
                wanted = replace(wanted, output_kind=RequestOutputKind.FINAL_ONLY)
            try:
                requests.append(
                    self.engine.make_request(
                        ids[index],
                        prompt.token_ids,
                        wanted,
                        prompt=prompt.text,
                        priority=priorities[index],
                        cache_salt=prompt.cache_salt,
                    )
                )
            except ValueError as error:
                raise ValueError(f"prompts[{index}]: {error}") from None
        self._next_request += len(ids)
        try:
            for request in requests:
                self.engine.enqueue(request)
            return self._drain(ids, use_tqdm)
        finally:
            for request_id in ids:  # whatever interrupted us, no request and no block stays behind
                self.engine.abort(request_id)
            if self.engine.recorder:
                self.engine.recorder.flush()

    def _drain(self, ids: list[str], use_tqdm: bool) -> list[RequestOutput]:
        done: dict[str, RequestOutput] = {}
        with tqdm(total=len(ids), desc="Generating", unit="request", disable=not use_tqdm) as bar:
            while len(done) < len(ids):
                for output in self.engine.step():
                    done[output.request_id] = output
                    bar.update()
        return [done[request_id] for request_id in ids]


LLM.__doc__ = documented(LLM.__doc__, EngineArgs)


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or many, as a list. A list of integers is one prompt, not many."""
    if isinstance(prompts, str | Mapping):
        return [prompts]
    if not isinstance(prompts, Sequence):
        raise ValueError(f"prompts must be a string, a dictionary, or a list of those; got {prompts!r}")
    if prompts and all(isinstance(item, int) for item in prompts):
        return [list(prompts)]  # type: ignore[arg-type]
    return list(prompts)  # type: ignore[arg-type]


def _one_for_each(params: Params, count: int) -> list[SamplingParams]:
    """One `SamplingParams` for each of `count` prompts."""
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if not isinstance(params, Sequence) or not all(isinstance(item, SamplingParams) for item in params):
        raise ValueError(f"sampling_params must be a SamplingParams or a list of them, got {params!r}")
    if len(params) != count:
        raise ValueError(f"sampling_params has {len(params)} entries for {count} prompts")
    return list(params)
