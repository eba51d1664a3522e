"""`make bench`: how fast and how cheap, as ratios to references of the same run.

    python tests/benchmarks/bench.py [--quick] [--only NAME ...] [--json FILE]

Makes a server, warehouses and data of its own and removes them. docs/benchmarks.md says what each figure means.
Exit code 1 where a benchmark could not be taken; a figure that is not reached is no error.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
# This checkout's code, in processes that are started, too.
sys.path[:0] = [str(TESTS.parent), str(TESTS), str(TESTS / "canonical"), str(TESTS / "benchmarks")]
os.environ["PYTHONPATH"] = str(TESTS.parent)

from measure import Figure, bench, machine  # noqa: E402

#: Modules with `figures(bench)`.
GROUPS = ("canonical_rows", "file_rows", "start_times", "engine_days", "api_reads", "whole_runs")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller data: under three minutes")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="share of the full sizes, where the disk is small"
    )
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=GROUPS, metavar="NAME")
    parser.add_argument("--json", type=Path, default=Path("bench.json"), help="where the figures go")
    arguments = parser.parse_args()
    # Ended from outside, it still removes what it made.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    # Of libraries, about each other, hundreds of lines of them.
    warnings.simplefilter("ignore")
    began, before = time.monotonic(), machine()
    figures: list[Figure] = []
    seconds: dict[str, int] = {}
    failed = False

    def say(line: str) -> None:
        print(f"… {line}", file=sys.stderr, flush=True)

    with bench(arguments.quick, say, arguments.scale) as shared:
        for group in arguments.only:
            group_began = time.monotonic()
            try:
                for figure in importlib.import_module(group).figures(shared):
                    figures.append(figure)
                    print(line_of(figure), flush=True)
            except Exception:
                traceback.print_exc()
                failed = True
            seconds[group] = round(time.monotonic() - group_began)
    report = {
        "machine": before,
        "load_after": machine()["load"],
        "quick": arguments.quick,
        "scale": arguments.scale,
        "seconds": round(time.monotonic() - began),
        "seconds_by_group": seconds,
        "figures": [figure.as_row() for figure in figures],
    }
    arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    print(f"\n{sum(figure.reached for figure in figures)} of {len(figures)} reached; {arguments.json}")
    print(", ".join(f"{group} {took} s" for group, took in seconds.items()))
    return failed


def line_of(figure: Figure) -> str:
    bound = f"{'≥' if figure.at_least else '≤'} {figure.reach:g}"
    mark = "reached" if figure.reached else "MISSED"
    numbers = f"{_short(figure.ours)} against {_short(figure.theirs)} {figure.unit} ({figure.reference})"
    note = f"\n        {figure.note}" if figure.note else ""
    return f"{figure.name}\n    {figure.ratio:.2f}  {bound}  {mark}  {numbers}{note}"


def _short(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


if __name__ == "__main__":
    sys.exit(main())
