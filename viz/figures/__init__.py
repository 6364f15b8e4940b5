"""Figures: pure functions, a timeline goes in, a scene comes out.

Each walks the trace once, asks the replayed state what *is* and the step's record what *happened*, and says
so in shapes. None knows who draws them. To add one: write the function, put it on a page, and let
`tests/viz/test_figures.py` compare what it shows with the state.
"""

from viz.figures.allowed_tokens import allowed_tokens, choices_of, structured_requests
from viz.figures.attention_triangle import attention_triangle
from viz.figures.batch_composition import batch_composition
from viz.figures.beam_tree import beam_tree
from viz.figures.block_pool import block_pool
from viz.figures.block_table import block_table
from viz.figures.cache_work import cache_work
from viz.figures.captions import captions
from viz.figures.comparison import Side, comparison
from viz.figures.curves import curves
from viz.figures.decode_intensity import decode_intensity
from viz.figures.kv_pictures import kv_pictures
from viz.figures.ladders import ladders
from viz.figures.memory import memory_over_time
from viz.figures.metrics_board import metrics_board
from viz.figures.overview import MOST_ROWS as MOST_OVERVIEW_ROWS
from viz.figures.overview import overview
from viz.figures.preemption_cost import preemption_cost
from viz.figures.prefix_tree import prefix_tree
from viz.figures.rank_lanes import rank_lanes
from viz.figures.rank_load import rank_load
from viz.figures.rank_ownership import rank_ownership
from viz.figures.request_cards import request_cards
from viz.figures.roofline import roofline
from viz.figures.scheduler_gantt import scheduler_gantt
from viz.figures.search import searched_requests
from viz.figures.speculation import measured_gain, speculation, speculation_facts
from viz.scene import Scene

__all__ = [
    "MOST_OVERVIEW_ROWS",
    "Scene",
    "Side",
    "allowed_tokens",
    "attention_triangle",
    "batch_composition",
    "beam_tree",
    "block_pool",
    "block_table",
    "cache_work",
    "captions",
    "choices_of",
    "comparison",
    "curves",
    "decode_intensity",
    "kv_pictures",
    "ladders",
    "measured_gain",
    "memory_over_time",
    "metrics_board",
    "overview",
    "preemption_cost",
    "prefix_tree",
    "rank_lanes",
    "rank_load",
    "rank_ownership",
    "request_cards",
    "roofline",
    "scheduler_gantt",
    "searched_requests",
    "speculation",
    "speculation_facts",
    "structured_requests",
]
