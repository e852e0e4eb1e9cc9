"""`python -m experiments NAME [--smoke | --quick] [--out DIR] [--workers N]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from experiments.common.experiment import Experiment
from valence.errors import UserError


def names() -> list[str]:
    """The experiments' names: their folders', with dashes."""
    return sorted(path.parent.name.replace("_", "-") for path in Path(__file__).parent.glob("*/run.py"))


def main(argv: Sequence[str] | None = None) -> None:
    """Run one experiment. Exits with 2 and one clear line for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments", description="Run an experiment and print the paper's figures beside ours.",
        epilog=f"Experiments: {', '.join(names())}.",
    )  # fmt: skip
    parser.add_argument("name", metavar="NAME", help="which experiment")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--smoke", action="store_true", help="seconds: only shows that the experiment works")
    size.add_argument("--quick", action="store_true", help="a few minutes: one seed, nothing is tuned")
    parser.add_argument("--out", metavar="DIR", type=Path, help="folder for the results (default: runs/NAME)")
    parser.add_argument("--workers", metavar="N", type=int, default=0, help="processes side by side (0: one per core)")
    options = parser.parse_args(argv)
    if options.name not in names():
        fail(f"there is no experiment {options.name!r}; the experiments are {', '.join(names())}")
    if options.workers < 0:
        fail(f"--workers is {options.workers}: give 0 for one process per core, or a number of processes")
    size_name = "smoke" if options.smoke else "quick" if options.quick else "full"
    try:
        module = import_module(f"experiments.{options.name.replace('-', '_')}.run")
        out = options.out or Path("runs") / options.name
        experiment = Experiment(options.name, module.SIZES[size_name], out, size_name, options.workers)
        print(f"written: {module.run(experiment)}")
    except UserError as error:
        fail(str(error))
    except ModuleNotFoundError as error:
        if not error.name or error.name.split(".")[0] in ("valence", "experiments"):
            raise
        fail(f"the package {error.name} is not installed: pip install 'valence-learn[language,control,images]'")
    except KeyboardInterrupt:
        print("interrupted; the same command continues after the last finished run", file=sys.stderr)
        sys.exit(130)


def fail(message: str) -> None:
    """One line on standard error, and exit status 2."""
    print(f"experiments: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
