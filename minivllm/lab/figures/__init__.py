"""The papers' figures, redrawn by the simulator beside the papers' numbers: `minivllm figures`.

Read in this order: `paper_numbers` (what was measured elsewhere), `serving` (one run, one sweep), `lines`
(what several figures draw alike), then a figure: `request_rate`, `block_size`, `preemption`, `shared_prefix`,
`static_gap`, `memory_use`; `page` puts them together.
"""
