"""The columns of changes, read back as the player reads them (`viz/player/changes.js`)."""

import struct
from base64 import b64decode


def column(data):
    width, text = data
    content = b64decode(text)
    return list(struct.unpack(f"<{len(content) // width}{ {1: 'B', 2: 'H', 4: 'I'}[width] }", content))


def patches_in(changes):
    """For each step, shape number → what changes, from the data that a player gets."""
    starts, slots, values = (column(changes[name]) for name in ("starts", "slot", "value"))
    patches = []
    for first, end in zip(starts, [*starts[1:], len(slots)], strict=True):
        patch = {}
        for slot, value in zip(slots[first:end], values[first:end], strict=True):
            shape, name = changes["slots"][slot]
            patch.setdefault(shape, {})[name] = changes["values"][value]
        patches.append(patch)
    return patches
