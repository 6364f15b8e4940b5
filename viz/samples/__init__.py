"""Samples: small traces that come with the project, so that no page is ever empty.

    paging.jsonl.gz  ──►  the dashboard's own folder  ──►  a trace like any other

Each names the page that it is best looked at on, and all pages that it has something to show for. They are
made by `python -m viz.samples`; tests open each of them, and see that each page can draw one.

Read next: `make.py`, which makes them; `viz/empty.py`, which offers them.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from minivllm.files import write_file
from viz.language import N_
from viz.state import state_folder

FOLDER = Path(__file__).parent
ALL_RUNS = ("overview", "kv_pool", "scheduler", "roofline", "metrics", "compare")
KERNELS = ("microscope", "flash_attention")


@dataclass(frozen=True)
class Sample:
    """A trace, or two of them that belong beside each other."""

    title: str
    names: tuple[str, ...]
    """Of its files."""
    pages: tuple[str, ...]
    """Their names in links, the best first."""

    def unpacked(self) -> list[Path]:
        """Its files, for opening; the second one belongs beside the first."""
        return [unpacked(name) for name in self.names]


SAMPLES = (
    Sample(N_("Paging: a dozen requests in a pool that is too small"), ("paging",), ALL_RUNS),
    Sample(
        N_("Sharing: a prefix cache, several answers of one prompt, beams"),
        ("sharing",),
        ("prefix_tree", "beam_tree", *ALL_RUNS),
    ),
    Sample(
        N_("Static and continuous batching: the same requests, twice"),
        ("static", "continuous"),
        ("compare", *(page for page in ALL_RUNS if page != "compare")),
    ),
    Sample(
        N_("Structured output: answers by a pattern"),
        ("structured",),
        ("structured_output", *ALL_RUNS),
    ),
    Sample(N_("Speculation: a small model guesses ahead"), ("speculation",), ("speculation", *ALL_RUNS)),
    Sample(
        N_("Two ranks that share every layer (tensor parallel)"),
        ("tensor-parallel",),
        ("ranks", *ALL_RUNS),
    ),
    Sample(
        N_("A pipeline of two stages, with a plan in flight for each"),
        ("pipeline-parallel",),
        ("ranks", *ALL_RUNS),
    ),
    Sample(N_("Paged attention, request by request"), ("paged-attention",), ("microscope",)),
    Sample(
        N_("FlashAttention 1 and 2, tile by tile"),
        ("flash-attention-1", "flash-attention-2"),
        ("flash_attention", "microscope"),
    ),
    Sample(
        N_("Naive attention: all scores in memory"),
        ("naive-attention",),
        ("flash_attention", "microscope"),
    ),
    Sample(N_("A failing story: a reader that is never forgotten"), ("story",), ("story",)),
    Sample(N_("Precision: weights in 8, 4 and 2 bits"), ("precision",), ("precision",)),
)


def samples_for(page: str) -> list[Sample]:
    """Those that this page has something to show for, the best first."""
    found = [sample for sample in SAMPLES if page in sample.pages]
    return sorted(found, key=lambda sample: sample.pages.index(page))


def packed_path(name: str) -> Path:
    """Where a sample lies in the project."""
    return FOLDER / f"{name}.jsonl.gz"


def folder_of_unpacked() -> Path:
    """Where samples are unpacked to: a trace is read from a plain file. It need not exist."""
    return state_folder() / "samples"


def unpacked(name: str) -> Path:
    """A sample as a plain file, under a folder that is named by its content: a newer one is another file.

    Raises:
        ValueError: the folder cannot be written to.
    """
    packed = packed_path(name).read_bytes()
    path = folder_of_unpacked() / sha256(packed).hexdigest()[:12] / f"{name}.jsonl"
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"{path.parent} cannot be written to: {error.strerror}") from error
        write_file(path, gzip.decompress(packed), "samples")
    return path


def is_sample(path: Path) -> bool:
    """Is this one of the unpacked files?"""
    return path.resolve().is_relative_to(folder_of_unpacked().resolve())


def restore(path: Path) -> None:
    """A link may lead to a sample that was not unpacked yet on this machine, or was cleared away."""
    if path.suffix == ".jsonl" and path.parent.parent == folder_of_unpacked() and not path.exists():
        for sample in SAMPLES:
            for name in sample.names:
                if name == path.stem:
                    unpacked(name)
