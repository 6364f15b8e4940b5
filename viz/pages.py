"""Which pages draw which kind of trace, in the order of the row above every page and of the tour.

Read next: `app.py`, the dashboard; `lesson_step.py`, which plays one of them within a lesson.
"""

from viz.views import (
    beam_tree,
    flash_attention,
    kv_pool,
    metrics,
    microscope,
    overview,
    prefix_tree,
    ranks,
    roofline,
    scheduler,
    speculation,
    structured,
)

ENGINE_PAGES = (
    overview,
    kv_pool,
    scheduler,
    beam_tree,
    prefix_tree,
    structured,
    speculation,
    ranks,
    roofline,
    metrics,
)
KERNEL_PAGES = (microscope, flash_attention)
