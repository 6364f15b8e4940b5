"""Which thread block reads which keys: side by side over queries, or over splits of the keys; their merge.

    keys             0 ────────────────────────────── 63
    thread block 0   ████████                              4,352 bytes ─┐
    thread block 1           ████████                      4,352 bytes ─┤    an own row for each thread block:
    thread block 2                   ████████              4,352 bytes ─┤    they run side by side
    thread block 3                           ████████      4,352 bytes ─┤
    combine_splits                                         2,176 bytes ◄┘    the next kernel, if there is one

Keys are counted as they lie in their array, up to the last that is read; of a cache in blocks, row after row.
Read next: `kernel_traffic.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from minivllm.trace.kernel_events import KernelArray, KernelTrace, WarpAccess
from viz.figures.common import clip, plural
from viz.figures.kernel_captions import COLUMN
from viz.figures.kernel_memory import array_of, cell, moved_bytes
from viz.language import _, counted, sentences
from viz.scene import Scene, bars_path, lines_path

NAMES = ("keys", "key")
LEFT, TOP, ROW, BAR = 118.0, 62.0, 25.0, 15.0
WIDTH, BRACKET = 318.0, 548.0
MOST_BLOCKS, MOST_CELLS = 32, 4096


def key_array(trace: KernelTrace) -> int | None:
    """The array of keys in global memory: [tokens, heads, head_dim], or [blocks, heads, rows, head_dim]."""
    for index, array in enumerate(trace.header.arrays):
        if array.name in NAMES and not array.is_shared and len(array.shape) in (3, 4):
            return index
    return None


def keys_by_block(trace: KernelTrace) -> dict[int, list[int]]:
    """Of each thread block that reads keys: which."""
    index, found = key_array(trace), defaultdict[int, set[int]](set)
    for access in _accesses(trace):
        if access.array == index and access.kind == "read":
            array = array_of(access, trace.header)
            found[access.block] |= {_place(first, array) for first in access.first}
    return {block: sorted(keys) for block, keys in sorted(found.items())}


def moved_by_block(trace: KernelTrace) -> dict[int, int]:
    """Bytes of global memory, in sectors, that each thread block reads or writes."""
    moved: dict[int, int] = defaultdict(int)
    for access in _accesses(trace):
        array = array_of(access, trace.header)
        if not array.is_shared:
            moved[access.block] += moved_bytes(access, array)
    return moved


def kernel_splits(traces: Sequence[KernelTrace]) -> list[Scene]:
    """The first kernel that reads keys, and the one after it; a step for each thread block."""
    number = next((n for n, trace in enumerate(traces) if key_array(trace) is not None), None)
    if number is None:
        return []
    trace, merge = traces[number], traces[number + 1] if number + 1 < len(traces) else None
    own, moved = keys_by_block(trace), moved_by_block(trace)
    num_keys = max((keys[-1] + 1 for keys in own.values()), default=0)
    blocks = list(own)[:MOST_BLOCKS]
    if not blocks or num_keys > MOST_CELLS:
        return []
    bottom = TOP + len(blocks) * ROW
    scene = Scene(_("Which thread block reads which keys"), COLUMN, bottom + (64 if merge else 34))
    words = _("{kernel}: {blocks} for {keys}").format(
        kernel=clip(trace.header.kernel, 24),
        blocks=plural(len(own), "thread block"),
        keys=plural(num_keys, "key"),
    )
    scene.text(4, 16, words, size=15, weight="bold")
    scene.text(4, TOP - 14, _("keys"), size=13, fill="muted")
    scene.text(LEFT, TOP - 14, "0", size=13, fill="muted")
    scene.text(LEFT + WIDTH, TOP - 14, f"{num_keys - 1}", size=13, fill="muted", anchor="end")
    scene.text(BRACKET - 12, TOP - 14, _("moved, bytes"), size=13, fill="muted", anchor="end")
    unit, shapes = WIDTH / num_keys, {}
    for line, block in enumerate(blocks):
        y = TOP + line * ROW
        scene.text(4, y + 12, _("thread block {block}").format(block=block), size=13)
        scene.rect(LEFT, y, WIDTH, BAR, stroke="outline", stroke_width=0.8)
        bars = [(LEFT + k * unit, y, (e - k) * unit, BAR) for k, e in _runs(own[block])]
        scene.text(BRACKET - 12, y + 12, f"{moved[block]:,}", size=13, anchor="end")
        shapes[block] = scene.path(bars_path(bars), fill="free")
    most = max(map(len, own.values()))
    note = _("None reads more than {keys}; they need nothing from each other.").format(
        keys=plural(most, "key")
    )
    if len(own) > len(blocks):
        rest = counted(
            "{count} more thread block is not drawn.",
            "{count} more thread blocks are not drawn.",
            len(own) - len(blocks),
        )
        note = sentences([note, rest])
    scene.text(4, bottom + 14, note, size=13, fill="muted")
    merged = _lay_merge(scene, merge, len(blocks)) if merge else None
    for block in blocks:
        scene.begin_step(
            _("Thread block {block} reads {keys}; {moved:,} bytes move.").format(
                block=block, keys=plural(len(own[block]), "key"), moved=moved[block]
            )
        )
        scene.set(shapes[block], fill="decode")
    if merge and merged is not None:
        total = sum(moved_by_block(merge).values())
        scene.begin_step(
            _("{kernel} makes one result of them; {total:,} bytes move.").format(
                kernel=clip(merge.header.kernel, 24), total=total
            )
        )
        scene.set(merged, fill="prefill")
    return [scene]


def _lay_merge(scene: Scene, merge: KernelTrace, num_blocks: int) -> int:
    """The row of the second kernel, and a bracket to it."""
    y = TOP + num_blocks * ROW + 28
    total = sum(moved_by_block(merge).values())
    scene.text(4, y + 14, clip(merge.header.kernel, 16), size=13)
    words = _("merges their states")
    box = scene.rect(LEFT, y, WIDTH, 20, fill="free", stroke="outline", stroke_width=0.8, label=words)
    scene.text(BRACKET - 12, y + 14, f"{total:,}", size=13, anchor="end")
    for line in range(num_blocks):
        middle = TOP + line * ROW + BAR / 2
        scene.path(lines_path([(BRACKET - 8, middle), (BRACKET, middle)]), stroke="ink")
    ends = [(BRACKET, TOP + BAR / 2), (BRACKET, y + 10), (BRACKET - 8, y + 10)]
    scene.path(lines_path(ends), stroke="ink")
    tip = [(BRACKET - 4, y + 6), (BRACKET - 8, y + 10), (BRACKET - 4, y + 14)]
    scene.path(lines_path(tip), stroke="ink")
    return box


def _accesses(trace: KernelTrace) -> Iterator[WarpAccess]:
    return (event for event in trace.events if isinstance(event, WarpAccess))


def _place(element: int, array: KernelArray) -> int:
    place = cell(element, array.shape)
    return place[0] * array.shape[2] + place[2] if len(array.shape) == 4 else place[0]


def _runs(keys: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Neighbours as ranges, `(first, end)`."""
    first = previous = keys[0]
    for key in keys[1:]:
        if key != previous + 1:
            yield first, previous + 1
            first = key
        previous = key
    yield first, previous + 1
