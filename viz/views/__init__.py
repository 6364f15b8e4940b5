"""The dashboard's pages: each has a `page(run)` that says what there is to see, and shows it.

The folder is not called `pages`: beside a main script that name belongs to Streamlit, which would run these
modules as scripts of their own whenever the first link that a fresh server gets leads to one of them.
"""
