"""`valence COMMAND …`: parse, call, print. Each command lies in a file of its own, imported when it is called."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "inspect": "tell what a file of feedback holds, and which method would learn from it",
    "align": "make a language model better from a file of feedback",
    "control": "make a control policy better by acting in an environment",
    "improve": "make a language model better on prompts, from a reward of its own completions",
    "improve-images": "make an image pipeline better on prompts, from a reward of its own images",
    "compare": "tell whose completions are better, of two models",
    "reward-model": "train a judge for improve from comparisons or scores",
    "demo": "align the small model that Valence carries with real human thumbs, in minutes",
    "offline-control": "make a control policy from episodes on disk, accepted and rejected actions and cloning",
    "search": "find where a function is smallest, from values of any scale, by accepting and rejecting",
    "reproduce": "rerun an experiment, the paper's figures beside ours",
}

USAGE = "usage: valence COMMAND …\n\n{commands}\n\nvalence COMMAND --help tells more; valence --version the version."


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. Exits with 0, or with 2 and one clear line for bad input, or 130 when interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE.format(commands="\n".join(f"  {name:15} {text}" for name, text in COMMANDS.items())))
        sys.exit(0 if arguments else 2)
    if arguments[0] == "--version":
        import valence

        print(f"valence {valence.__version__}")
        return
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        fail(f"there is no command {name!r}; the commands are {', '.join(COMMANDS)}")
    from valence.errors import UserError

    try:
        import_module(f"valence.cli.{name.replace('-', '_')}").run(rest)
    except UserError as error:
        fail(str(error))
    except KeyboardInterrupt:
        print(
            "interrupted; align, improve, improve-images, control and search go on with --resume from the last "
            "checkpoint in --out",
            file=sys.stderr,
        )
        sys.exit(130)
    except ModuleNotFoundError as error:
        if not error.name or error.name.split(".")[0] == "valence":
            raise
        fail(f"the package {error.name} is not installed: pip install 'valence-learn[{_extra(name, rest)}]'")
    except BrokenPipeError:
        # The reader of our output (head, less) has gone; say nothing more.
        sys.stderr.close()
        sys.exit(0)


def _extra(command: str, rest: Sequence[str]) -> str:
    about = rest[0] if command == "reproduce" and rest else command
    if about in ("improve-images", "image"):
        return "images"
    return "control" if about in ("control", "offline-control", "search", "bandit") else "language"


def fail(message: str) -> None:
    """One line on standard error, and exit status 2."""
    print(f"valence: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)
