"""Live: the running engine of a server, watched by the dashboard.

    server ── /engine/events ──► connection.py ── events ──► window.py    the last minutes, any step of them
                                                                │
    browser ◄── feed.py: a frame when it asks ◄── picture.py ◄──┘         the figures of one step

Read next: `window.py`.
"""
