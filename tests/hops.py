"""How far a request walks: files, changes of file and calls of one decode step.

    python -m tests.hops [attention backend]        the counts
    python -m tests.hops [attention backend] -v     and the path, file by file

Counted are calls and returns of the project's own Python functions, once everything that happens once has
happened. `tests/test_style.py` holds the plain backend to the counts in CONTRIBUTING.md.
"""

import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PROMPT = "Once upon a time there was"


class Walk(NamedTuple):
    """One decode step, in order: `(file, function)` for each call, `(file, "")` for each return."""

    frames: list[tuple[str, str]]

    @property
    def hops(self) -> list[str]:
        """Files in the order in which they are visited."""
        files = [file for file, _ in self.frames]
        return [file for number, file in enumerate(files) if not number or files[number - 1] != file]

    @property
    def num_calls(self) -> int:
        return sum(bool(function) for _, function in self.frames)

    def before(self, room: str) -> "Walk":
        """The part of the walk before the first file of a room."""
        files = [file for file, _ in self.frames]
        end = next((number for number, file in enumerate(files) if file.startswith(room)), len(files))
        return Walk(self.frames[:end])

    def counts(self) -> str:
        return f"{len(set(self.hops))} files, {len(self.hops) - 1} changes of file, {self.num_calls} calls"


def walk(backend: str) -> Walk:
    """Follow the second decode step of one request."""
    from minivllm import LLM, SamplingParams
    from minivllm.model.tiny import MODEL_PATH

    llm = LLM(MODEL_PATH, num_gpu_blocks_override=64, attention_backend=backend)
    params = SamplingParams(temperature=0.8, max_tokens=3)
    llm.generate(PROMPT, params, use_tqdm=False)  # whatever happens once, happens here
    frames: list[tuple[str, str]] = []
    ends: list[int] = []

    def watch(frame, event, _):
        path = frame.f_code.co_filename
        if event in ("call", "return") and path.startswith(str(ROOT)) and path != __file__:
            file = Path(path).relative_to(ROOT).as_posix()
            frames.append((file, frame.f_code.co_name if event == "call" else ""))

    step = llm.engine.step

    def counted_step(*call):
        outputs = step(*call)
        ends.append(len(frames))
        return outputs

    llm.engine.step = counted_step
    sys.setprofile(watch)
    try:
        llm.generate(PROMPT, params, use_tqdm=False)
    finally:
        sys.setprofile(None)
    return Walk(frames[ends[0] : ends[1]])


def main(arguments: list[str]) -> None:
    names = [argument for argument in arguments if argument != "-v"]
    backend = names[0] if names else "torch"
    path = walk(backend)
    print(f"{backend}: one decode step: {path.counts()}")
    print(f"before the executor: {path.before('minivllm/executor').counts()}")
    if "-v" in arguments:
        last = ""
        for file, function in path.frames:
            if file != last:
                print(f"\n{file}:", end="")
            last = file
            print(f" {function}" if function else "", end="")
        print()


if __name__ == "__main__":
    main(sys.argv[1:])
