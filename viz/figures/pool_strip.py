"""The strip below a pool of blocks: which part is in use, which is cached, which is free.

    filled │ wasted │ cached │ free        312 blocks in use, 40 cached and evictable, 160 free

Read next: `block_pool.py`.
"""

from __future__ import annotations

from minivllm.trace.events import TraceHeader
from minivllm.trace.timeline import StepRecord
from viz.figures.common import NARROW
from viz.language import _
from viz.scene import Scene, hatch_path, rounded


class PoolStrip:
    """Lays the strip out at `y`; `bottom` is where it ends."""

    def __init__(self, scene: Scene, header: TraceHeader, y: float) -> None:
        self.scene, self.header = scene, header
        names = ("filled", "wasted", "cached") if header.prefix_cache else ("filled", "wasted")
        self.shapes = {name: scene.rect(0, y, 0, 14, fill=name) for name in names}
        self.y = y
        self.hatching = scene.path("", stroke="outline", stroke_width=0.9)
        scene.rect(0.5, y, NARROW - 1, 14, stroke="outline")
        self.text = scene.text(0, y + 32, "", size=15)
        self.bottom = y + 38

    def draw(self, record: StepRecord) -> None:
        """Show the numbers of a step."""
        size, total = self.header.block_size, self.header.num_blocks
        unit = NARROW / (total * size)
        filled, used = record.num_filled_slots, record.num_used_blocks * size
        end, waste = rounded(filled * unit), rounded((used - filled) * unit)
        self.scene.set_one(self.shapes["filled"], "width", end)
        self.scene.set(self.shapes["wasted"], x=end, width=waste)
        self.scene.set_one(self.hatching, "d", hatch_path([(end, self.y, waste, 14.0)]))
        words = [_("{count:,} blocks in use").format(count=record.num_used_blocks)]
        if "cached" in self.shapes:
            evictable = record.num_evictable_blocks
            width = rounded(evictable * size * unit)
            self.scene.set(self.shapes["cached"], x=rounded(used * unit), width=width)
            words.append(_("{count:,} cached and evictable").format(count=evictable))
        free = total - record.num_used_blocks - record.num_evictable_blocks
        words.append(_("{count:,} free").format(count=free))
        told = _(", ").join(words)
        if used:
            empty = _("{empty:,} of {all:,} slots empty ({share:.1%})")
            told += " · " + empty.format(empty=used - filled, all=used, share=1 - filled / used)
        self.scene.set(self.text, text=told)
