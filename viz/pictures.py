"""Figures by name, as still pictures: for lesson texts, slides and papers.

On a page a figure is called by its view, which asks the reader for the request, the kernel or the warp to
show. Here a figure has a name, and an option that is left out is chosen as the page would choose it:

    draw("block_table", [path], -1, {"request": "0"})   ►   an SVG of the last step

Options: `request` (id) for figures of one request; `kernel` (its place in the file, from 0), `block` and
`warp` (the requests of one of them) for kernels; `screen` ("wide" or "narrow") for figures that have both;
`tables` (False: the memory alone, without a block table above it); `unit` ("step" for a clock of steps).

Read next: `lesson_pictures.py`, which makes the pictures of the lessons.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from minivllm.trace.curves import read_curves
from minivllm.trace.kernel_events import KernelTrace, WarpAccess, read_kernel_traces
from minivllm.trace.reader import read_trace
from minivllm.trace.timeline import Timeline, make_timeline
from viz import figures
from viz.backends.svg import to_svg_column
from viz.figures.common import NARROW, PHONE, WIDE, names_of
from viz.figures.kernel_blocks import kernel_blocks
from viz.figures.kernel_lanes import kernel_lanes
from viz.figures.kernel_matrix import kernel_matrix, piece_captions
from viz.figures.kernel_memory import array_of
from viz.figures.kernel_scores import kernel_scores
from viz.figures.kernel_softmax import kernel_softmax
from viz.figures.kernel_source import kernel_source
from viz.figures.kernel_splits import kernel_splits
from viz.figures.kernel_tiles import Piece, pieces
from viz.figures.kernel_totals import kernel_totals
from viz.figures.kernel_traffic import kernel_shared, kernel_traffic
from viz.figures.roofline import roofline_captions
from viz.figures.selected_tables import most_interesting_request
from viz.figures.step_work import timed_work
from viz.kernel_steps import Follow, Played, played
from viz.metric_charts import metric_charts
from viz.scene import Scene

Options = Mapping[str, Any]


class Figure(NamedTuple):
    """How a figure is made from files."""

    make: Callable[[Sequence[Path], Options, int], Sequence[Scene]]
    """`(traces, options, step)` to scenes, one below the other."""
    options: tuple[str, ...] = ()
    num_traces: int = 1


def draw(name: str, traces: Sequence[Path], step: int, options: Options | None = None) -> str:
    """The SVG of a figure after a step; a negative step counts from the end.

    Raises:
        ValueError: there is no such figure, option, request, kernel or step; what there is, is named.
    """
    figure, options = find_figure(name, options or {}), options or {}
    scenes = figure.make(traces, options, step)
    if not scenes:
        raise ValueError(f"{name}: {traces[0].name} holds nothing that this figure could show")
    num_steps = scenes[0].num_steps
    if not -num_steps <= step < num_steps:
        raise ValueError(
            f"{name}: step must lie in {-num_steps} … {num_steps - 1} for {traces[0].name}, got {step}"
        )
    return to_svg_column(scenes, step % num_steps)


def find_figure(name: str, options: Options) -> Figure:
    """The figure of this name, which knows these options.

    Raises:
        ValueError: it does not.
    """
    if name not in FIGURES:
        raise ValueError(f"figure must be one of {', '.join(sorted(FIGURES))}; got {name!r}")
    unknown = sorted(set(options) - set(FIGURES[name].options))
    if unknown:
        known = ", ".join(FIGURES[name].options) or "none"
        raise ValueError(f"{name} has no option {', '.join(unknown)}; it has: {known}")
    if options.get("screen", "wide") not in ("wide", "narrow"):
        raise ValueError(f"{name}: screen must be 'wide' or 'narrow', got {options['screen']!r}")
    return FIGURES[name]


# ── runs of the engine ────────────────────────────────────────────────────────────────────────────────


def _timeline(path: Path) -> Timeline:
    timeline = make_timeline(read_trace(path))
    if not timeline.num_steps or not timeline.spans:
        raise ValueError(f"{path.name} holds no step of an accepted request, so there is nothing to draw")
    return timeline


def _of_run(make: Callable[[Timeline], Sequence[Scene]]) -> Figure:
    return Figure(lambda traces, options, step: make(_timeline(traces[0])))


def _of_request(
    make: Callable[[Timeline, str], Scene | list[Scene]], choose: Callable[[Timeline], str]
) -> Figure:
    def scenes(traces: Sequence[Path], options: Options, step: int) -> list[Scene]:
        timeline = _timeline(traces[0])
        made = make(timeline, _chosen_request(traces[0], timeline, options, choose))
        return made if isinstance(made, list) else [made]

    return Figure(scenes, ("request",))


def _block_pool(traces: Sequence[Path], options: Options, step: int) -> list[Scene]:
    timeline = _timeline(traces[0])
    if not options.get("tables", True):
        return [figures.block_pool(timeline)]
    return [
        figures.block_pool(timeline, _chosen_request(traces[0], timeline, options, most_interesting_request))
    ]


def _chosen_request(
    path: Path, timeline: Timeline, options: Options, choose: Callable[[Timeline], str]
) -> str:
    request = str(options["request"]) if "request" in options else choose(timeline)
    if request not in timeline.spans:
        known = ", ".join(names_of(timeline))
        raise ValueError(f"{path.name} has no request {request!r}; it has: {known}")
    return request


def _of_width(make: Callable[[Timeline, float], Scene], narrow: float = NARROW) -> Figure:
    def scenes(traces: Sequence[Path], options: Options, step: int) -> list[Scene]:
        return [make(_timeline(traces[0]), narrow if options.get("screen") == "narrow" else WIDE)]

    return Figure(scenes, ("screen",))


def _first_search(timeline: Timeline) -> str:
    found = figures.searched_requests(timeline)
    if not found:
        raise ValueError("beam_tree: no request of this run searched with beams")
    return found[0]


def _first_structured(timeline: Timeline) -> str:
    found = figures.structured_requests(timeline)
    if not found:
        raise ValueError("allowed_tokens: no request of this run had structured output")
    return found[0]


def _comparison(traces: Sequence[Path], options: Options, step: int) -> list[Scene]:
    sides = [figures.Side(path.name.removesuffix(".jsonl"), _timeline(path)) for path in traces]
    unit, width = options.get("unit", "time"), PHONE if options.get("screen") == "narrow" else WIDE
    if unit not in ("time", "step"):
        raise ValueError(f"comparison: unit must be 'time' or 'step', got {unit!r}")
    return figures.comparison(sides[0], sides[1], width, in_steps=unit == "step")


def _preemption_cost(traces: Sequence[Path], options: Options, step: int) -> list[Scene]:
    return figures.preemption_cost([_timeline(path) for path in traces])


def _cache_work(traces: Sequence[Path], options: Options, step: int) -> list[Scene]:
    return [figures.cache_work(_timeline(traces[0]), _timeline(traces[1]))]


def _ladders(traces: Sequence[Path], options: Options, step: int) -> list[Scene]:
    paged, in_pages = (_timeline(path) for path in traces)
    request = _chosen_request(traces[0], paged, options, most_interesting_request)
    return [figures.ladders(paged, in_pages, request)]


def _roofline(timeline: Timeline) -> list[Scene]:
    work = timed_work(timeline)
    return [figures.roofline(timeline, work, timeline.trace.header.hardware)] if work else []


def _decode_intensity(timeline: Timeline) -> list[Scene]:
    work = timed_work(timeline)
    told = roofline_captions(timeline, work, timeline.trace.header.hardware)
    return [figures.decode_intensity(timeline, work, told)] if work else []


# ── kernels ───────────────────────────────────────────────────────────────────────────────────────────


def _kernels(path: Path) -> list[KernelTrace]:
    """Those that the pages offer, in their order."""
    traces = read_kernel_traces(path)
    return [trace for trace in traces if any(isinstance(event, WarpAccess) for event in trace.events)]


def _chosen_kernel(path: Path, options: Options, default: int = 0) -> KernelTrace:
    found, number = _kernels(path), options.get("kernel", default)
    if number not in range(len(found)):
        raise ValueError(f"{path.name}: number of the kernel must lie below {len(found)}, got {number!r}")
    return found[number]


def _of_requests(make: Callable[[KernelTrace, Played, int, float], Sequence[Scene]], *more: str) -> Figure:
    """A figure whose steps are requests of warps to memory."""

    def scenes(traces: Sequence[Path], options: Options, step: int) -> Sequence[Scene]:
        trace = _chosen_kernel(traces[0], options)
        shown = played(trace, Follow(options.get("block"), options.get("warp")))
        width = PHONE if options.get("screen") == "narrow" else WIDE
        return make(trace, shown, step, width) if shown.accesses else []

    return Figure(scenes, ("kernel", "block", "warp", *more))


def _memory(trace: KernelTrace, shown: Played, step: int, width: float) -> list[Scene]:
    """Of global and shared memory the one that the request goes to."""
    scenes = kernel_lanes(trace.header, shown.accesses)
    if not -len(shown.accesses) <= step < len(shown.accesses):
        return scenes
    is_shared = array_of(shown.accesses[step], trace.header).is_shared
    chosen = scenes[-1 if is_shared else 0]
    chosen.stacked = False  # it stands alone
    return [chosen]


def _of_pieces(
    make: Callable[[KernelTrace, list[Piece], list[str]], Scene | list[Scene] | None],
) -> Figure:
    """A figure whose steps are tiles; by default of the first kernel that has any."""

    def scenes(traces: Sequence[Path], options: Options, step: int) -> list[Scene]:
        kernels = _kernels(traces[0])
        default = next((number for number, trace in enumerate(kernels) if pieces(trace)), 0)
        trace = _chosen_kernel(traces[0], options, default)
        found = pieces(trace)
        made = (make(trace, found, piece_captions(found)) if found else None) or []
        return made if isinstance(made, list) else [made]

    return Figure(scenes, ("kernel",))


def _softmax(trace: KernelTrace, found: list[Piece], told: list[str]) -> Scene | None:
    return kernel_softmax(found, told) if any(piece.updates for piece in found) else None


FIGURES: dict[str, Figure] = {
    "attention_triangle": _of_request(
        figures.attention_triangle, lambda timeline: next(iter(timeline.spans))
    ),
    "cache_work": Figure(_cache_work, (), 2),
    "curves": Figure(lambda traces, options, step: [figures.curves(read_curves(traces[0]))]),
    "overview": _of_run(figures.overview),
    "block_pool": Figure(_block_pool, ("request", "tables")),
    "block_table": _of_request(figures.block_table, most_interesting_request),
    "kv_pictures": _of_request(figures.kv_pictures, most_interesting_request),
    "metrics_board": _of_run(lambda timeline: [figures.metrics_board(timeline)]),
    "metric_charts": _of_run(metric_charts),
    "memory_over_time": _of_run(lambda timeline: [figures.memory_over_time(timeline)]),
    "scheduler_gantt": _of_width(figures.scheduler_gantt),
    "batch_composition": _of_width(figures.batch_composition),
    "allowed_tokens": _of_request(figures.allowed_tokens, _first_structured),
    "speculation": _of_width(figures.speculation),
    "rank_lanes": _of_width(figures.rank_lanes, PHONE),
    "rank_load": _of_width(figures.rank_load, PHONE),
    "rank_ownership": _of_width(figures.rank_ownership, PHONE),
    "beam_tree": _of_request(figures.beam_tree, _first_search),
    "prefix_tree": _of_width(figures.prefix_tree, PHONE),
    "preemption_cost": Figure(_preemption_cost, (), 2),
    "roofline": _of_run(_roofline),
    "decode_intensity": _of_run(_decode_intensity),
    "comparison": Figure(_comparison, ("screen", "unit"), 2),
    "ladders": Figure(_ladders, ("request",), 2),
    "kernel_source": _of_requests(
        lambda t, s, n, width: [kernel_source(t.header, s.accesses, width)], "screen"
    ),
    "kernel_lanes": _of_requests(lambda t, s, n, width: kernel_lanes(t.header, s.accesses)),
    "kernel_memory": _of_requests(_memory),
    "kernel_blocks": _of_requests(lambda t, s, n, width: kernel_blocks(t.header, s.accesses)),
    "kernel_totals": _of_requests(lambda t, s, n, width: [kernel_totals(t.header, s.accesses)]),
    "kernel_matrix": _of_pieces(lambda t, found, told: kernel_matrix(t.header, found, told)),
    "kernel_scores": _of_pieces(lambda t, found, told: kernel_scores(found, told)),
    "kernel_softmax": _of_pieces(_softmax),
    "kernel_shared": _of_pieces(kernel_shared),
    "kernel_traffic": _of_pieces(kernel_traffic),
    "kernel_splits": Figure(lambda traces, options, step: kernel_splits(_kernels(traces[0]))),
}
