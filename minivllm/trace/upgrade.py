"""Old traces: events of versions 1 and 2 become events of this version, before anything else sees them.

Only this module knows old names. It works on the plain dictionaries that a line's JSON gives, so that
`events.py` holds one vocabulary, and a trace in memory is always of the present version:

    line ── JSON ──► {"event": "RequestPreempted", "lack": "place"}
         ── upgrade ──► {"event": "RequestPreempted", "shortage": "batch_slots"} ──► RequestPreempted

Version 1 knew no sharing. Every field that version 2 added has a default that says so. Version 3 is a subset
of version 4, that of version 5, and that of version 6, so they need nothing.

Read next: `reader.py`, which calls this.
"""

from __future__ import annotations

from typing import Any

NEWEST_RENAMED = 2
"""The newest version of which anything was renamed since."""
RENAMED_FIELDS = {"RequestPreempted": {"in_favour_of": "preempted_for", "lack": "shortage"}}
"""Event → its old field → the field's name now."""
RENAMED_VALUES = {
    ("RequestPreempted", "shortage"): {"place": "batch_slots"},
    ("BlocksEvicted", "reason"): {"room": "capacity"},
}
"""Event and field, by their names now → old value → the value now."""


def upgrade_event(fields: dict[str, Any]) -> dict[str, Any]:
    """An event of version 1 or 2, as one of version 3; what did not change stays as it is."""
    event = fields.get("event")
    names = RENAMED_FIELDS.get(str(event), {})
    upgraded = {names.get(name, name): value for name, value in fields.items()}
    for (kind, name), values in RENAMED_VALUES.items():
        if event == kind and name in upgraded:
            value = upgraded[name]
            upgraded[name] = values.get(value, value) if isinstance(value, str) else value
    return upgraded
