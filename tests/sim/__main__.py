"""`python -m tests.sim`: run seeds on all cores, replay one with its trace, or look for planted bugs."""

import argparse
import os
import sys

from rich.console import Console

from tests.sim.many import finders, first_failure
from tests.sim.run import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seed", type=int, help="replay this one, and print its trace")
    parser.add_argument("--seeds", type=int, default=500, help="how many to run (default 500)")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("-v", "--verbose", action="store_true", help="the trace as it goes")
    parser.add_argument(
        "--planted",
        action="store_true",
        help="tell which seeds find the planted bugs, if they changed",
    )
    options = parser.parse_args()
    console = Console(highlight=False, markup=False)
    if options.planted:
        missed = False
        for name, known, found in finders(console=console):
            missed |= found is None
            if found != known:
                console.print(f"{name}: found_by={found}, was {known}")
        return missed
    if options.seed is not None:
        report = run(options.seed, print if options.verbose else None)
        console.print(
            f"seed {report.seed}: {report.calls} calls, {report.blocks} blocks, "
            f"{report.recoveries} recoveries, {report.virtual_s:.1f} s, trace {report.trace_hash}"
        )
        if report.wrong:
            console.print(f"WRONG: {report.wrong}")
        return bool(report.wrong)
    failed = first_failure(range(options.first, options.first + options.seeds), console=console)
    if failed is not None:
        console.print(f"{failed.wrong}\n\nmake sim SEED={failed.seed}")
    return failed is not None


if __name__ == "__main__":
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    sys.exit(main())
