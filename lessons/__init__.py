"""Lessons as exercises: read, step through a real run, write the module yourself, be judged by properties.

    NN_topic/    lesson.md, lesson.zh.md    the text
                 walkthrough.py             a real run, step by step; a script and a notebook
                 reference.py               the solution: what the exercise asks for, and no more
                 exercise.py                its signatures and docstrings, without the bodies
                 checks.py                  properties that judge whatever is put in the place of `subject`
                 checks.zh.json             their sentences and hints in Chinese
                 mutants.py                 wrong solutions; one is for the learner to catch

What runs them: `commands.py` (the command line) and `viz/views/lessons.py` (the dashboard) → `desk_work.py` →
`runner.py` (starts the judge and watches it) → `judge.py` (plays stories with the learner's code) →
`comparing.py` (the same story with the reference, beside it).
"""

import minivllm.guard  # noqa: F401  # Ctrl-C finds it ready, whatever is imported afterwards
