"""`valence COMMAND …`: a table of commands, and one way to parse, call and print."""

from __future__ import annotations

import errno
import re
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import valence
from valence.errors import UserError

RUNS = "valence.runs"
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
"""Errors of a full or protected disk, which no check at the start can foresee."""


@dataclass(frozen=True)
class Command:
    """A row of the table: a line for `valence --help`, and what lies in a module: the class of the configuration and
    the function (config, log=, show=) that runs it.

    Args:
        extra: the package extra that has what it needs.
        early: the function is (words, positional, log=, show=) and parses them, as the data choose the method.
    """

    summary: str
    module: str
    config: str
    run: str
    extra: str = "language"
    early: bool = False


COMMANDS = {
    "inspect": Command(
        "show what a file of feedback holds, and which method would learn from it",
        f"{RUNS}.inspect", "InspectConfig", "inspect",
    ),
    "align": Command(
        "make a language model better from a file of feedback",
        f"{RUNS}.align", "AlignConfig", "align_from_words", early=True,
    ),
    "improve": Command(
        "make a language model better on prompts, from a reward of its own completions",
        f"{RUNS}.improve_language", "ImproveConfig", "run_language_improvement",
    ),
    "improve-images": Command(
        "make an image pipeline better on prompts, from a reward of its own images",
        f"{RUNS}.improve_images", "ImagesConfig", "run_image_improvement", "images",
    ),
    "reward-model": Command(
        "train a judge for improve from comparisons or scores",
        f"{RUNS}.reward_model", "RewardModelConfig", "train_reward_model",
    ),
    "compare": Command(
        "compare the completions of two models", f"{RUNS}.compare", "CompareConfig", "run_comparison",
    ),
    "control": Command(
        "make a control policy better by acting in an environment",
        f"{RUNS}.control", "ControlConfig", "run_control", "control",
    ),
    "offline-control": Command(
        "make a control policy from episodes on disk: accepted and rejected actions, and cloning",
        f"{RUNS}.offline_control", "OfflineControlConfig", "run_offline_control", "control",
    ),
    "search": Command(
        "find where a function is smallest, from values of any scale, by accepting and rejecting",
        f"{RUNS}.search", "SearchConfig", "run_search", "control",
    ),
    "demo": Command(
        "align the small model that Valence carries with real human thumbs, in minutes",
        f"{RUNS}.demo", "DemoConfig", "demo",
    ),
}  # fmt: skip

USAGE = (
    "usage: valence COMMAND …\n\n{commands}\n\nvalence COMMAND --help lists its options; valence --version prints the "
    "version."
)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. Exits with 0, with 2 and one clear line for bad input, or with 128 + the signal's number."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        lines = (f"  {name:15} {command.summary}" for name, command in COMMANDS.items())
        print(USAGE.format(commands="\n".join(lines)))
        sys.exit(0 if arguments else 2)
    if arguments[0] == "--version":
        print(f"valence {valence.__version__}")
        return
    name, words = arguments[0], arguments[1:]
    if name not in COMMANDS:
        fail(f"there is no command {name!r}; the commands are {', '.join(COMMANDS)}")
    try:
        call(name, words)
    except UserError as error:
        fail(str(error), *getattr(error, "__notes__", ()), again=retry(arguments, getattr(error, "columns", "")))
    except KeyboardInterrupt as error:
        print("; ".join(("valence: interrupted", *map(spell, filter(None, map(str, error.args))))), file=sys.stderr)
        sys.exit(128 + getattr(error, "number", signal.SIGINT))
    except ModuleNotFoundError as error:
        if not error.name or error.name.split(".")[0] == "valence":
            raise
        fail(f"the package {error.name} is not installed: pip install 'valence-learn[{COMMANDS[name].extra}]'")
    except BrokenPipeError:
        # The reader of our output (head, less) has gone; print nothing more.
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        if error.errno not in DISK:
            raise
        fail(f"{error.filename or 'the disk'} cannot be written to: {error.strerror}")


def call(name: str, words: Sequence[str]) -> None:
    """Parse the words of a command and run it."""
    command = COMMANDS[name]
    module = import_module(command.module)
    kind: Any = getattr(module, command.config)
    if "-h" in words or "--help" in words:
        print(spell(help_of(kind, words, name)))
        return
    from valence.runs.settings import configure

    given, run = with_config_file(kind, words), getattr(module, command.run)
    if command.early:
        run(*given, log=log, show=True)
    else:
        run(configure(kind, *given), log=log, show=True)


def help_of(kind: Any, words: Sequence[str], name: str) -> str:
    """The help of a command, with the options of the method that the words name."""
    from valence.cli.help import render
    from valence.runs.methods import METHODS
    from valence.runs.settings import preset_default, take

    table, (asked, _) = METHODS.get(name, {}), take(words, "method", "preset")
    method = asked["method"] or (kind.method if table else name)
    default = preset_default(kind, table[method], asked["preset"], method) if method in table else kind()
    return render(default, method, list(table) if len(table) > 1 else [])


def with_config_file(kind: Any, words: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """The words without --config, behind those of its file; with --resume and no file, of the run's own config.yaml."""
    from valence.runs.settings import CONFIG_FILE, fields_for_method, read_config, take, to_words

    (asked, rest), (known, _) = take(words, "config"), take(words, "out", "method")
    path, own = asked["config"], Path(known["out"] or ".") / CONFIG_FILE
    if path is None and "--resume" in rest and known["out"] and own.is_file():
        path = str(own)
    if path is None:
        return rest, {}
    more, positional = to_words(kind, fields_for_method(kind, read_config(path), known["method"]))
    return [*more, *rest], positional


def spell(text: str) -> str:
    """Arguments between backquotes as the command line spells them: `max_length=8` becomes --max-length 8, `show=False`
    --no-show and `text=""` --text ""."""
    return re.sub(r"`([a-z][a-z0-9_]*)(=[^`]*)?`", _spelled, text)


def _spelled(match: re.Match[str]) -> str:
    name, value = match[1].replace("_", "-"), (match[2] or "=")[1:]
    if value in ("False", '""'):
        return f"--no-{name}" if value == "False" else f'--{name} ""'
    flag, value = f"--{name}", value.strip("\"'")
    return flag if value in ("", "True") else f"{flag} {value}"


def log(line: str) -> None:
    """Print a line, arguments spelled as the command line does."""
    print(spell(line), flush=True)


def retry(arguments: Sequence[str], columns: str) -> str:
    """The command line again, with the columns that could work; "" where there are none to try."""
    from valence.runs.settings import take

    return shlex.join(["valence", *take(arguments, "columns")[1], "--columns", columns]) if columns else ""


def fail(message: str, *notes: str, again: str = "") -> None:
    """Print one line on standard error, then notes and a command that could work, and exit with status 2."""
    print(f"valence: {' '.join(spell(message).split())}", *map(spell, notes), sep="\n", file=sys.stderr)
    if again:
        print(f"try: {again}", file=sys.stderr)
    sys.exit(2)
