"""What is seen while a run goes on: a bar of answers. The numbers come at the end (`report.py`).

Read next: `session.py`.
"""

from __future__ import annotations

from typing import Any

from tqdm import tqdm

from minivllm.lab.bench.serve.load import Progress
from minivllm.lab.bench.serve.record import Record
from minivllm.lab.bench.serve.session import Told
from minivllm.terminal import Console


class Bar:
    """Progress: how many answers have come, how many are errors. Silent where there is no terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Any = None

    def __enter__(self) -> Told:
        return Told(self._note, self._begin)

    def __exit__(self, *error: object) -> None:
        self._close()

    def _note(self, sentence: str) -> None:
        self._console.print(sentence)

    def _begin(self, total: int, words: str) -> Progress:
        self._close()
        self._bar = bar = tqdm(total=total, desc=words, unit="req", disable=None, leave=False)
        failed = 0

        def on_answer(record: Record) -> None:
            nonlocal failed
            failed += not record.is_complete
            bar.update()
            if failed:
                bar.set_postfix(failed=failed, refresh=False)

        return on_answer

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
