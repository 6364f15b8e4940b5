"""`python -m viz.samples`: make all samples anew, or the named ones. See `make.py`."""

from __future__ import annotations

import argparse
import sys

from viz.samples.make import MAKERS, make


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m viz.samples", description="Make the samples anew.")
    parser.add_argument("names", nargs="*", metavar="name", help=f"some of {', '.join(MAKERS)}; all if none")
    names = parser.parse_args().names or list(MAKERS)
    if unknown := [name for name in names if name not in MAKERS]:
        parser.error(f"there is no sample {unknown[0]!r}; there are {', '.join(MAKERS)}")
    for name in names:
        print(f"{name}: {make(name):,} bytes", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
