"""The pictures of the book: what a lesson's text shows, from its walkthrough's traces, as pages that play.

A walkthrough says which figures its text has, and at which step (`lessons/walkthroughs.py`). Here they are
the same figures with all steps, and begin at that one. The dashboard's page of the lesson is played, too.

Read next: `texts.py`, which puts them into the text.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lessons.catalogue import Lesson
from lessons.walkthroughs import picture_file
from minivllm.files import write_file
from viz.language import speaking
from viz.playing import PAGES, cards_of, html_of, num_traces, scenes_of
from viz.samples import SAMPLES, packed_path

WHOLE = "run"
"""Name of the page that plays the whole run of a lesson."""


class Played(NamedTuple):
    """A picture of the book."""

    file: str
    """Its page, in the folder of all pictures of a language."""
    title: str
    ratio: float
    """Height by width of the frame before the page has said how high it is."""


def make_pictures(
    lesson: Lesson, traces: Path, folder: Path, language: str
) -> Iterator[tuple[str, Played | ValueError]]:
    """Write the pages of one lesson; tell each by the name of its picture in the text, or why there is none.

    Args:
        traces: where the walkthrough has left its traces.
        folder: where the pages go.
    """
    constants = lesson.constants()
    paths = [traces / name for name in constants.get("TRACES", ())]
    wanted = dict(constants.get("PICTURES", {}))
    if paths and constants.get("PAGE"):
        wanted[WHOLE] = (constants["PAGE"], 0, 0)
    for file, entry in wanted.items():
        stem = f"{lesson.number}-{Path(file).stem}"
        name = file if file == WHOLE else picture_file(file, language)
        try:
            yield name, _make(stem, entry, paths, folder, language)
        except ValueError as error:
            yield name, ValueError(f"{lesson.name}: {name}: {error}")


def make_samples(traces: Path, folder: Path, language: str) -> Iterator[tuple[str, list[Played]]]:
    """Write the pages of the project's samples; tell each sample's title with those that it is best seen on.

    Args:
        traces: where the samples are unpacked to.
        folder: where the pages go.
    """
    traces.mkdir(parents=True, exist_ok=True)
    for sample in SAMPLES:
        paths = [traces / f"{name}.jsonl" for name in sample.names]
        for name, path in zip(sample.names, paths, strict=True):
            path.write_bytes(gzip.decompress(packed_path(name).read_bytes()))
        best = [page for page in sample.pages if page in PAGES][:1]
        pages = dict.fromkeys([*best, *(page for page in ("kv_pool",) if page in sample.pages)])
        if pages:
            entries = {page: (page, 0, None) for page in pages}
            stem = f"sample-{sample.names[0]}"
            yield (
                sample.title,
                [_make(f"{stem}-{page}", entry, paths, folder, language) for page, entry in entries.items()],
            )


def _make(stem: str, entry: Any, paths: Sequence[Path], folder: Path, language: str) -> Played:
    """`entry` is as in PICTURES; its step may be None, too: any at which there is something to see."""
    name, number, step, options = (*entry, {})[:4]
    with speaking(language):
        chosen = paths[number : number + num_traces(name)]
        scenes = scenes_of(name, chosen, options, step or 0)
        if step is None:  # where something has happened already
            step = scenes[0].num_steps // 3
        page = html_of(scenes, step, cards_of(name, chosen), beside=True)
    write_file(folder / f"{stem}.html", page, "out")
    height = sum(scene.height for scene in scenes) / (2 if len(scenes) > 1 else 1)
    return Played(f"{stem}.html", scenes[0].title, height / max(scene.width for scene in scenes))
