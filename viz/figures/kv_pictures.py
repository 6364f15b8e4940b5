"""All that the page "KV pool" shows: the pool, memory over time, and one request's block table.

The first and the last are drawn from the replayed state. They are drawn together, because replaying a long
trace once for each of them would take longer than drawing.

Read next: `block_pool.py`.
"""

from __future__ import annotations

from minivllm.trace.timeline import Timeline, walk_again
from viz.figures.block_pool import BlockPoolPicture
from viz.figures.block_table import BlockTablePicture
from viz.figures.captions import captions
from viz.figures.memory import memory_over_time
from viz.scene import Scene


def kv_pictures(timeline: Timeline, selected: str) -> list[Scene]:
    """Three scenes, with the block tables of request `selected`, and the history of every block."""
    pool = BlockPoolPicture(timeline, selected, is_touchable=True)
    table = BlockTablePicture(timeline, selected)
    told = captions(timeline)
    for record, state in walk_again(timeline):
        for picture in (pool, table):
            picture.step(record, state, told[record.step])
    pool.scene.histories = pool.histories(timeline)
    return [pool.scene, memory_over_time(timeline, told), table.scene]
