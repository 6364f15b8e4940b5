"""`minivllm generate`: prompts in, texts out. Flags of the engine are the fields of `EngineArgs`.

Read next: `minivllm/engine/engine_flags.py`, `minivllm/llm.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from minivllm.console.locale_text import typed_text
from minivllm.engine.engine_flags import with_engine_flags
from minivllm.terminal import Console

if TYPE_CHECKING:
    from minivllm import StructuredOutputsParams
    from minivllm.outputs import RequestOutput


@with_engine_flags()
def generate(
    prompts: Annotated[list[str], typer.Argument(help="Texts to continue.")],
    max_tokens: Annotated[int, typer.Option(help="Most tokens to generate for each prompt.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[
        float, typer.Option(help="Sample among the likeliest tokens that have this probability together.")
    ] = 1.0,
    top_k: Annotated[
        int, typer.Option(help="Sample among so many of the likeliest tokens; 0 considers all.")
    ] = 0,
    n: Annotated[int, typer.Option("--n", help="Outputs for each prompt; they share its blocks.")] = 1,
    use_beam_search: Annotated[
        bool, typer.Option("--use-beam-search", help="Search for the n likeliest outputs.")
    ] = False,
    structured_outputs: Annotated[
        str | None,
        typer.Option(
            help="What the output must be, as JSON with one of json, regex, choice, grammar, json_object, "
            "structural_tag."
        ),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Each prompt is a user's message to a chat model.")
    ] = False,
    *,
    engine_settings: dict[str, Any],
) -> None:
    """Continue prompts with any Llama, Mistral, Qwen2 or Qwen3 checkpoint. Flags carry vLLM's names."""
    from minivllm import LLM, SamplingParams
    from minivllm.model.tiny import MODEL_PATH

    prompts = [typed_text(prompt) for prompt in prompts]
    sampling = SamplingParams(
        n=n,
        use_beam_search=use_beam_search,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        max_tokens=max_tokens,
        structured_outputs=_structure(structured_outputs),
    )
    if engine_settings["model"] is None:
        engine_settings["model"] = MODEL_PATH
    with LLM(**engine_settings) as llm:
        if chat:
            outputs = llm.chat([[{"role": "user", "content": prompt}] for prompt in prompts], sampling)
        else:
            outputs = llm.generate(prompts, sampling)
    console = Console()
    print_outputs(prompts, outputs, console)
    if trace := engine_settings["trace"]:
        console.point_to(trace)


def _structure(text: str | None) -> StructuredOutputsParams | None:
    """What was typed, as parameters. Raises `ValueError` if it is none."""
    from minivllm import StructuredOutputsParams

    if text is None:
        return None
    try:
        asked = json.loads(typed_text(text))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--structured-outputs must be JSON, got {text[:100]!r} ({error})") from None
    if not isinstance(asked, dict):
        raise ValueError(f"--structured-outputs must be an object of JSON, got {text[:100]!r}")
    try:
        return StructuredOutputsParams(**asked)
    except TypeError as error:
        raise ValueError(f"--structured-outputs: {error}") from None


def print_outputs(prompts: Sequence[str], outputs: Sequence[RequestOutput], console: Console) -> None:
    """Each prompt, and below it what the model has made of it."""
    for prompt, output in zip(prompts, outputs, strict=True):
        console.rule(Text(prompt.replace("\n", " ")[:60]), align="left")
        for completion in output.outputs:
            if len(output.outputs) > 1:
                score = "" if completion.score is None else f"   score {completion.score:.4f}"
                console.print(f"[{completion.index}]{score}", style="dim")
            # A terminal may break the lines; a break of ours would stand within strings of JSON.
            console.print(completion.text, soft_wrap=True)
