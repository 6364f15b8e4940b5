"""A progress bar that costs no result: where it cannot be written, the work goes on without it.

Standard error may be closed (a service, a program without a console), or a file on a full disk.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

from tqdm.auto import tqdm


class ProgressBar(tqdm):  # type: ignore[misc, type-arg, unused-ignore]
    """`tqdm`, which never raises because of what it writes to."""

    def __init__(self, *, disable: bool = False, **options: Any) -> None:
        super().__init__(disable=disable or sys.stderr is None, **options)

    @staticmethod
    def status_printer(*args: Any, **options: Any) -> Any:
        with suppress(OSError):  # it flushes what others have written
            return tqdm.status_printer(*args, **options)
        return lambda text: None

    def display(self, *args: Any, **options: Any) -> Any:
        with suppress(OSError):
            return super().display(*args, **options)
        return False

    def close(self) -> None:
        with suppress(OSError):
            super().close()
