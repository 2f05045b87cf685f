"""`python -m benchmarks`: measure, print the table."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.case import PEERS, all_rows
from benchmarks.harness import Result, as_json, machine, run
from benchmarks.measure import LEAST, QUICK, Effort
from benchmarks.report import cells, markdown, print_table


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="graphc beside its peers and its limits")
    parser.add_argument("--only", action="append", metavar="TEXT", help="rows and families with this in their name (repeatable)")
    parser.add_argument("--peers", default="", help=f"some of {','.join(PEERS)}")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--rounds", type=int, help="rounds over the peers (default 9)")
    parser.add_argument("--toy", action="store_true", help="toy sizes, one call each: checks the benchmarks, says nothing of speed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rounds there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there")
    parser.add_argument("--list", action="store_true", help="name the rows and stop")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    wanted = [w.lower() for w in options.only or [""]]
    rows = [r for r in all_rows() if any(w in f"{r.family} {r.name}".lower() for w in wanted)]
    if not rows:
        print(f"no row or family has {' or '.join(map(repr, options.only))} in its name; see --list", file=sys.stderr)
        return 2
    if options.list:
        for r in rows:
            print(f"{r.family}: {r.name}" + (f"  [{r.figure.text}]" if r.figure else ""))
        return 0
    effort = LEAST if options.toy else QUICK if options.quick else Effort()
    if options.rounds:
        effort = Effort(options.rounds, effort.batch, effort.batches)
    before = machine()
    peers = [p for p in options.peers.split(",") if p]
    results: list[Result] = []
    for result in run(rows, effort, options.toy, peers):
        results.append(result)
        print(" | ".join(c for c in cells(result) if c), file=sys.stderr)
        # Written as it grows: a long run that is stopped has not been for nothing.
        if options.json:
            options.json.write_text(as_json(results, before))
    print_table(results)
    if options.markdown:
        options.markdown.write_text(markdown(results) + "\n")
    return 1 if any(r.error for r in results) else 0


if __name__ == "__main__":
    sys.exit(main())
