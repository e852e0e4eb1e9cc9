"""Sizes, settings and runs of an experiment: each run is one setting, and runs in a process of its own.

The row of every finished run is cached on disk, so an interrupted experiment repeats nothing that it has finished.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Generic, TypeVar

from experiments.common.results import Claim, commit, print_claims, write_page, write_results

Row = dict[str, Any]
TUNING_SEED = 100
"""Methods are tuned on this seed, which is never reported."""
SILENT: dict[str, Any] = {
    "quiet": True, "tracker": "none", "threads": 1, "log_every": 10**6, "save_every": 0, "eval_every": 0,
}  # fmt: skip
"""Options of a run inside an experiment: one thread, no output, no evaluation between the first and the last."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large an experiment is; each experiment adds its own fields.

    Args:
        seeds: seeds of the runs that are reported.
        tune: whether methods are tuned first.
    """

    seeds: tuple[int, ...] = (0,)
    tune: bool = False


@dataclass(frozen=True)
class Setting:
    """One run; each experiment adds the fields that its figures depend on.

    Args:
        name: the method's name in the tables.
        seed: random seed of the run.
    """

    name: str
    seed: int = 0


def key(setting: Setting, *shared: Any) -> str:
    """A name for a run's files: the setting's name and seed, and a digest of everything that its row depends on.

    Paths do not count, and of a `Size` neither do `seeds` and `tune`.
    """
    text = json.dumps([setting, *shared], default=_as_json, sort_keys=True)
    return f"{plain(setting.name)}-{setting.seed}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def plain(name: str) -> str:
    """A name with letters, digits and dashes only."""
    return "-".join("".join(letter if letter.isalnum() else " " for letter in name).split())


def _as_json(value: Any) -> Any:
    if isinstance(value, Path):
        return ""
    if is_dataclass(value):
        dropped = ("seeds", "tune") if isinstance(value, Size) else ()
        return {one.name: getattr(value, one.name) for one in fields(value) if one.name not in dropped}
    raise TypeError(f"a setting must hold JSON values, dataclasses and paths; {value!r} is none of them")


def cached(folder: Path, function: Callable[..., Mapping[str, Any]], setting: Setting, *shared: Any) -> Row:
    """The row of one run, `function(setting, *shared)` on one thread, or what an earlier call wrote to `folder`.

    The row also gets the setting's name and seed, and the commit that it was made at.
    """
    path = folder / f"{key(setting, *shared)}.json"
    if not path.exists():
        import torch

        torch.set_num_threads(1)
        row = {"name": setting.name, "seed": setting.seed, "commit": commit(), **function(setting, *shared)}
        folder.mkdir(parents=True, exist_ok=True)
        # Another process may be waiting for this file: it appears complete or not at all.
        draft = path.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
        draft.replace(path)
    return json.loads(path.read_text(encoding="utf-8"))


S = TypeVar("S", bound=Size)


@dataclass
class Experiment(Generic[S]):
    """One call of an experiment.

    Args:
        name: the experiment's name on the command line.
        size: how much is run; `size_name` is "smoke", "quick" or "full".
        out: folder for everything that is written.
        workers: processes side by side; 0 takes one per core. The size "smoke" always takes one.
    """

    name: str
    size: S
    out: Path
    size_name: str = "full"
    workers: int = 0
    commits: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.asked_workers = self.workers
        self.workers = 1 if self.size_name == "smoke" else self.workers or os.cpu_count() or 1

    @property
    def command(self) -> str:
        """The command that makes these results, without any folder of this machine."""
        out = self.out.absolute()
        out = out.relative_to(Path.cwd()) if out.is_relative_to(Path.cwd()) else Path(out.name)
        size = "" if self.size_name == "full" else f" --{self.size_name}"
        workers = f" --workers {self.asked_workers}" if self.asked_workers else ""
        return f"python -m experiments {self.name}{size} --out {out.as_posix()}{workers}"

    def run_all(
        self, function: Callable[..., Mapping[str, Any]], settings: Sequence[Setting], *shared: Any,
        folder: str = "runs", log: Callable[[Row], str] | None = None, keep_going: bool = False,
    ) -> list[Row]:  # fmt: skip
        """The rows of all settings, in their order; see `cached`.

        Args:
            function: importable by its name: other processes call it.
            folder: the rows' folder, below `out`.
            log: the line that is printed for a finished run; without it the number of finished runs is printed.
            keep_going: leave out runs that fail instead of raising the first error after all others have ended.
        """
        calls = [partial(cached, self.out / folder, function, setting, *shared) for setting in settings]
        rows: dict[int, Row] = {}
        errors: list[Exception] = []
        every = max(1, len(calls) // 20)
        for place, outcome in self._outcomes(calls):
            if isinstance(outcome, Exception):
                errors.append(outcome)
                print(f"  {settings[place].name} seed {settings[place].seed} FAILED: {outcome}", flush=True)
                continue
            rows[place] = outcome
            self.commits.add(outcome["commit"])
            if log is not None:
                print(f"  {log(outcome)}", flush=True)
            elif len(rows) % every == 0 or len(rows) == len(calls):
                print(f"  {len(rows)}/{len(calls)} runs", flush=True)
        if errors and not keep_going:
            raise errors[0]
        return [rows[place] for place in sorted(rows)]

    def _outcomes(self, calls: Sequence[Callable[[], Row]]) -> Iterator[tuple[int, Row | Exception]]:
        """(the call's place, its row or its error), each when it has ended."""
        if self.workers == 1 or len(calls) == 1:
            for place, call in enumerate(calls):
                try:
                    yield place, call()
                except Exception as error:
                    yield place, error
            return
        with ProcessPoolExecutor(self.workers, mp_context=get_context("spawn")) as pool:
            futures = {pool.submit(call): place for place, call in enumerate(calls)}
            for future in as_completed(futures):
                error = future.exception()
                if error is not None and not isinstance(error, Exception):
                    raise error
                yield futures[future], future.result() if error is None else error

    def write(
        self, rows: Sequence[Mapping[str, Any]], claims: Sequence[Claim], pictures: Sequence[str], *,
        page: Mapping[str, Any] | None = None, note: str = "", **more: Any,
    ) -> Path:  # fmt: skip
        """Print the claims, write `results.json` and the page beside it; returns the path of `results.json`.

        Args:
            rows: the lines of the table.
            pictures: names of files in `out` that the page shows.
            page: values for the names in the experiment's `page.md`, beside `size`.
            note: a paragraph at the end of the page's text.
            more: further entries of `results.json`.
        """
        if claims:
            print_claims(claims)
        path = write_results(
            self.out, self.name, rows, claims, self.size.seeds, command=self.command, commits=sorted(self.commits),
            **more,
        )  # fmt: skip
        write_page(self.out / "README.md", self.page(page or {}, note), *pictures)
        return path

    def page(self, values: Mapping[str, Any], note: str = "") -> str:
        """The text of the page: `page.md` beside the experiment's code, and `reading.md` in full size."""
        home = Path(__file__).parents[1] / self.name.replace("-", "_")
        names = ["page.md", "reading.md"] if self.size_name == "full" else ["page.md"]
        texts = [(home / name).read_text(encoding="utf-8").strip() for name in names if (home / name).is_file()]
        texts[0] = texts[0].format(size=self.size, **values)
        return "\n\n".join([*texts, note] if note else texts)


def fast_dtype() -> str:
    """bfloat16 for training where the processor computes in it, else float32; figures are measured in float32."""
    import torch

    return "bfloat16" if torch.cpu._is_avx512_bf16_supported() else "float32"
