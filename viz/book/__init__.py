"""The book: lessons, glossary, samples and figures as one static site, with every picture playing.

    walkthroughs ──► traces ──► pages that play (`pictures.py`) ──────────────┐
    lessons, glossary, figures ──► Markdown (`texts.py`) ──► Sphinx (`site.py`) ──► site/en, site/zh
                                                                              └──► checked (`links.py`)

The site opens from the disk and from any static host. Sphinx makes it, because its search is a script that is
loaded with the page: where a generator fetches its index, nothing can be searched that was opened from a
disk. Each picture is a page of its own in a frame, so that the keys belong to the picture that was clicked.

Read next: `site.py`.
"""
