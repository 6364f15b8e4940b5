"""What a kernel did, in a few lines: the counterpart of `summary.py` for a trace of the microscope."""

from __future__ import annotations

from minivllm.trace.kernel_events import FaultFound, KernelEnded, KernelTrace, WarpAccess


def kernel_summary_lines(trace: KernelTrace) -> list[str]:
    """Threads, requests of warps, bytes of every array, faults."""
    header = trace.header
    requests = [event for event in trace.events if isinstance(event, WarpAccess)]
    faults = [event for event in trace.events if isinstance(event, FaultFound)]
    ended = [event for event in trace.events if isinstance(event, KernelEnded)]
    lines = [
        f"{header.kernel}: {header.title}",
        f"  {_times(header.grid)} blocks of {_times(header.block)} threads, "
        f"{header.shared_bytes:,} bytes of shared memory each",
        f"  {len(requests):,} instructions of warps that touch memory",
    ]
    if not ended:
        return [*lines, "  The trace was cut off: the end is missing."]
    for number, array in enumerate(header.arrays):
        mine = [request for request in requests if request.array == number]
        if not mine:
            continue
        end = ended[0]
        asked = end.read_bytes.get(array.name, 0), end.written_bytes.get(array.name, 0)
        units, ideal = sum(request.units for request in mine), sum(request.ideal_units for request in mine)
        lines.append(
            f"  {array.name} ({'shared' if array.is_shared else 'global'}): {asked[0]:,} bytes read, "
            f"{asked[1]:,} written, {units:,} {'turns' if array.is_shared else 'sectors'} "
            f"({ideal:,} would do)"
        )
    lines += [f"  {fault.kind} in {fault.array}: {fault.message}" for fault in faults]
    return lines if faults else [*lines, "  No races, no reads of uninitialised memory."]


def _times(sizes: tuple[int, ...]) -> str:
    return " × ".join(str(size) for size in sizes)
