"""The options of `minivllm bench serve`: their names, which are vLLM's, and a line of help for each.

Read next: `command.py`, which parses them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def _option(words: str, *names: str, panel: str) -> Any:
    return typer.Option(*names, help=words, rich_help_panel=panel)


SERVER, LOAD, RESULT = "Server", "Load", "Result"
OFFLINE = "Beside the engine alone, other servers, or while it is watched"

Bounds = Annotated[list[str] | None, typer.Argument(metavar="NAME:MS", help="More bounds of --goodput.")]
BaseUrl = Annotated[str | None, _option("Of any OpenAI server; ours is started if left out.", panel=SERVER)]
Backend = Annotated[
    str, _option("openai (completions) or openai-chat.", "--backend", "--endpoint-type", panel=SERVER)
]
Model = Annotated[
    str | None,
    _option("The server's name for it; for our own: nano, small, medium or a folder.", panel=SERVER),
]
ApiKey = Annotated[str | None, _option("Bearer token; also OPENAI_API_KEY.", panel=SERVER)]
Tokenizer = Annotated[str | None, _option("Folder of the model's tokenizer.", panel=SERVER)]
VocabSize = Annotated[int | None, _option("Token ids that prompts may have.", panel=SERVER)]
ModelLen = Annotated[int | None, _option("Longest prompt and answer together.", panel=SERVER)]
Threads = Annotated[int | None, _option("Of our own server.", panel=SERVER)]
Flags = Annotated[str, _option("More flags for our own server, in quotes.", panel=SERVER)]

Workload = Annotated[
    str,
    _option(
        "sharegpt, alpaca, fixed:IN,OUT, uniform:A-B,C-D, shared:PREFIX[,K], chat, FILE.jsonl, or FILE.json "
        "of ShareGPT's form.",
        "--workload",
        "--dataset-path",
        panel=LOAD,
    ),
]
Requests = Annotated[int, _option("Requests of a run.", "--num-prompts", "--requests", panel=LOAD)]
Rate = Annotated[float | None, _option("Open loop: requests a second.", panel=LOAD)]
Rates = Annotated[str | None, _option("A run for each: 1,2,4,8.", panel=LOAD)]
Burstiness = Annotated[float, _option("1: Poisson; less: bursts; more: more even.", panel=LOAD)]
Arrivals = Annotated[str, _option("poisson or constant.", panel=LOAD)]
Concurrency = Annotated[int | None, _option("Closed loop: most requests at once.", panel=LOAD)]
Seed = Annotated[int, _option("Of lengths, prompts and arrivals.", panel=LOAD)]
OutputTokens = Annotated[
    int | None,
    _option("Of each answer, for FILE.json.", "--output-tokens", "--sharegpt-output-len", panel=LOAD),
]
Temperature = Annotated[float, _option("Of sampling; 0 is greedy.", panel=LOAD)]
IgnoreEos = Annotated[bool, _option("Exactly as many tokens as asked for.", panel=LOAD)]
SendText = Annotated[bool, _option("Prompts as texts, not as token ids.", panel=LOAD)]
Warmups = Annotated[int, _option("Requests before the first run, not measured.", panel=LOAD)]
Timeout = Annotated[float, _option("Seconds for one answer.", panel=LOAD)]

Goodput = Annotated[list[str] | None, _option("ttft:100 tpot:20 e2el:2000, in ms.", panel=RESULT)]
Lag = Annotated[float, _option("Milliseconds of lateness beyond which a run is doubtful.", panel=RESULT)]
Json = Annotated[
    Path | None, _option("Write vLLM's fields to this file.", "--json", "--result-filename", panel=RESULT)
]
SaveResult = Annotated[bool, _option("The same, to a file named by date and rate.", panel=RESULT)]
Detailed = Annotated[bool, _option("Every request, too.", "--save-detailed", panel=RESULT)]
Plot = Annotated[Path | None, _option("Latency against rate: .svg, .png or .pdf.", panel=RESULT)]

Against = Annotated[bool, _option("What HTTP costs: the same requests served and offline.", panel=OFFLINE)]
Watchers = Annotated[
    str | None,
    _option("What the live view costs: so many read /engine/events, 0,1,10.", panel=OFFLINE),
]
Streams = Annotated[str, _option("Streams at once, a comparison for each.", panel=OFFLINE)]
Repeat = Annotated[int, _option("Rounds, in which both sides take turns.", panel=OFFLINE)]
Peers = Annotated[
    list[str] | None,
    _option("Beside this server (llama-cpp, vllm); may be given several times.", "--peer", panel=OFFLINE),
]
Pythons = Annotated[
    list[str] | None,
    _option("NAME=PATH: the Python of its environment.", "--python", panel=OFFLINE),
]
