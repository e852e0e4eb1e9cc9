"""Feedback of any shape, read into records. Every row is a record, a problem with its line, or skipped on purpose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from valence.data.formats.columns import ABSENT, FIELDS, FOLDED, Column, Template, canonical, displaced, folded
from valence.data.formats.join import Join
from valence.data.formats.layouts import Known, detect
from valence.data.formats.read import read_rows
from valence.data.formats.row import LABEL, PROMPT, SCORE, WINNER, Refused, Row, Skipped
from valence.data.formats.suggest import UnknownColumns, looks_like_verdicts
from valence.data.formats.verdicts import LabelRule, Verdicts
from valence.data.products import PRODUCTS, Products, joinable, repair
from valence.data.records import Problem, Record
from valence.data.stored import Stored, Tick
from valence.data.tally import Tally
from valence.errors import UserError, one_line

Origin = dict[str, list[str]]
"""Our name of a field -> the columns that it is made of."""
MapRow = Callable[[dict[str, object]], "Mapping[str, object] | None"]
SAMPLED = 200
"""Rows of each file that a message about its columns is made from."""
MOST_KNOWN = 1000


@dataclass(frozen=True)
class Loaded:
    """The content of files of feedback: every row is one record, one problem, or skipped.

    Args:
        records: the rows that can be used, in the order of the files. They lie on disk, and each is made anew when it
            is asked for.
        problems: the rows that cannot be used, each with its file, line and reason.
        layouts: layout -> number of its records.
        rows: number of rows. A row of an export that holds several pieces of feedback counts as so many.
        unread: column that no layout reads -> number of records with it; most common first.
        skipped: reason -> rows that say nothing on purpose, such as ties and ignored values.
        verdict_like: unread columns whose values look like verdicts -> some of the values.
        tally: what was counted of the records.
    """

    records: Sequence[Record]
    problems: list[Problem]
    layouts: dict[str, int]
    rows: int
    unread: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    verdict_like: dict[str, str] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally, repr=False, compare=False)


def load_feedback(
    paths: Sequence[str | Path], *, columns: Mapping[str, str] | None = None, labels: str | None = None,
    join: Sequence[str] = (), map_row: MapRow | None = None, prompt_template: str | None = None,
    split: str | None = None, subset: str | None = None, strict: bool = False, keep: bool = True,
    progress: Tick | None = None,
) -> Loaded:  # fmt: skip
    """Read feedback of any shape from JSON, JSONL, CSV, Parquet (the text ones also gzipped), exports of products,
    saved data sets, or data sets of the hub.

    Args:
        paths: files, folders that `datasets` saved, or ids of the hub such as owner/name.
        columns: our name -> the file's column: a name, a path such as turns[-1].content, a sum such as
            instruction+input, or a list such as a|b|c.
        labels: what the values of a column of verdicts mean (`LabelRule.parse`).
        join: (file, "on=KEY") or (file, "on=KEY=ITS_KEY"): each row gets the columns of the file's row with its key.
        map_row: row -> row, or None to drop it.
        prompt_template: a text file with {column} where a column's text belongs.
        split, subset: of a data set of the hub.
        strict: raise a UserError for the first row that cannot be used.
        keep: whether the records are kept. Without it they are only counted.
        progress: called with the number of rows read so far.
    Raises:
        UserError: a file cannot be read, has no usable row, or has a column whose values have no clear meaning;
            `columns` has an unknown field, a column that no row has, or a field that no layout reads.
    """
    if isinstance(paths, str) or not paths:
        raise UserError("no feedback files given")
    joined = Join.parse(join, joinable) if join else iter
    template = Template(prompt_template) if prompt_template else None
    reader = _Reader(columns or {}, LabelRule.parse(labels), map_row, template)
    records, tally = Stored(Record.restored), Tally()
    problems: list[Problem] = []
    good = 0
    for path in map(str, paths):
        before, counted = good, len(problems)
        reader.begin(path)
        for line, found in reader.read(joined(read_rows(path, split=split, subset=subset, repair=repair))):
            if isinstance(found, Record):
                good += 1
                tally.add(found)
                if keep:
                    records.append(found)
            else:
                problems.append(Problem(path, line, str(found)))
            if progress is not None:
                progress(good + len(problems))
        reader.check_names(path)
        reader.verdicts.check(path)
        if good == before and not reader.skipped:
            raise reader.nothing_read(path, problems[counted:])
    reader.check_renames()
    if not good:
        reasons = [f"{reason} ({count:,} rows)" for reason, count in reader.skipped.most_common()]
        why = "; ".join([*reasons, *map(str, problems[:1])])
        raise UserError(f"{', '.join(map(str, paths))}: no row says anything: {why}")
    if strict and problems:
        more = f" (and {len(problems) - 1} more rows with problems)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{more}")
    unread = {name: rows for name, rows in reader.unread.most_common() if name not in reader.read_columns}
    return Loaded(
        records, problems, dict(reader.layouts), good + len(problems) + sum(reader.skipped.values()), unread,
        dict(reader.skipped), looks_like_verdicts(reader.sample, unread), tally,
    )  # fmt: skip


class _Reader:
    """Rows into records, by the user's names of the columns.

    It counts which columns of the files the layouts read, how many records have each of the others, what was skipped,
    and the values of each column of verdicts.
    """

    def __init__(
        self, columns: Mapping[str, str], rule: LabelRule, map_row: MapRow | None, template: Template | None
    ) -> None:
        self.renames = canonical(columns)
        self.columns = {ours: Column(theirs) for ours, theirs in self.renames.items()}
        self.displaced = displaced(self.renames) | ({*PROMPT} - {*self.renames} if template else set())
        self.rule, self.map_row, self.template = rule, map_row, template
        verdicts = (LABEL[0], SCORE[0], WINNER[0])
        self.wanted = {ours: theirs for ours, theirs in self.renames.items() if ours in verdicts}
        # Columns of the user's own name a text: the export is then a plain table.
        self.mapped = len(self.wanted) < len(self.renames)
        self.seen: dict[str, None] = {}
        self.used: set[str] = set()
        self.found: set[str] = set()
        self.read_columns: set[str] = set()
        self.unread: Counter[str] = Counter()
        self.layouts: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self.known: dict[str, str] = {}
        self.named: dict[tuple[str, ...], tuple[dict[str, str], Origin]] = {}
        self.fitting: Known = {}
        self.products = Products()
        self.begin("")

    def begin(self, path: str) -> None:
        """Start a file: verdicts are checked file by file."""
        self.path = path
        self.name = ""
        self.verdicts = Verdicts(self.rule, lambda name: self.name or self.renames.get(name, name))
        self.sample: list[dict[str, object]] = []
        self.names: Counter[str] = Counter()

    def read(self, rows: Iterable[tuple[int, object]]) -> Iterator[tuple[int, Record | Refused]]:
        """(line, record or why there is none) of each row; what is skipped is counted."""
        for line, product, unit in self._units(rows):
            try:
                if isinstance(unit, Exception):
                    raise unit
                yield line, self._record(unit, product, line)
            except Skipped as skipped:
                self.skipped[str(skipped)] += 1
            except Refused as refused:
                yield line, refused

    def _units(self, rows: Iterable[tuple[int, object]]) -> Iterator[tuple[int, str, dict[str, object] | Exception]]:
        """(line, the product or "", a row of our own layouts) of each piece of feedback."""
        whole: dict[str, list[tuple[int, Mapping[str, object]]]] = {}
        compared: dict[tuple[str, str], tuple[int, list[Mapping[str, object]]]] = {}
        for line, row in rows:
            try:
                fields = self._mapped(row)
                product = None if self.mapped else self.products.of(fields)
                if product is None:
                    yield line, "", fields
                elif product.whole is not None:
                    whole.setdefault(product.name, []).append((line, fields))
                else:
                    for unit in product.rows(fields):
                        if product.compare and isinstance(unit, dict) and unit.get("comparison") is not None:
                            key = product.name, str(unit["comparison"])
                            compared.setdefault(key, (line, []))[1].append(unit)
                        else:
                            yield line, product.name, unit
            except (Refused, Skipped) as reason:
                yield line, "", reason
        for product in PRODUCTS:
            if product.whole is not None and product.name in whole:
                yield from ((line, product.name, unit) for line, unit in product.whole(whole[product.name]))
            for (name, _), (line, units) in compared.items():
                if product.compare is not None and product.name == name:
                    try:
                        yield line, name, product.compare(units)
                    except Refused as reason:
                        yield line, name, reason

    def _mapped(self, row: object) -> dict[str, object]:
        """A row after the user's `map_row`."""
        if not isinstance(row, dict):
            raise row if isinstance(row, (Refused, Skipped)) else Refused("not a JSON object")
        if len(self.sample) < SAMPLED:
            self.sample.append(row)
        if self.map_row is None:
            return row
        try:
            made = self.map_row(dict(row))
        except Exception as error:
            raise Refused(f"`map` failed: {one_line(f'{type(error).__name__}: {error}')}") from error
        if made is None:
            raise Skipped("dropped by `map`")
        if not isinstance(made, Mapping):
            raise Refused(f"`map` gave {type(made).__name__}, and must give a row or None")
        return dict(made)

    def _named(self, unit: dict[str, object]) -> dict[str, object]:
        """A product's piece of feedback, if it is of the name that the user asks for, or of the only one."""
        name = unit.pop("feedback_name", None)
        unit.pop("comparison", None)
        self.name = name if isinstance(name, str) else ""
        if not self.name:
            return unit
        self.names[self.name] += 1
        if self.wanted and self.name not in self.wanted.values():
            raise Skipped("feedback of another name than `columns` asks for")
        self.found.update(ours for ours, theirs in self.wanted.items() if theirs == self.name)
        if self.wanted.get(LABEL[0]) == self.name and LABEL[0] not in unit and SCORE[1] in unit:
            unit[LABEL[0]] = unit.pop(SCORE[1])
        return unit

    def _record(self, row: dict[str, object], product: str, line: int) -> Record:
        """The row as a Record with its place, its split and its other columns."""
        self.name = ""
        if product:
            row = self._named(row)
        columns = {} if product else self.columns
        names, origin = self._names(row)
        aside: dict[str, object] = {}
        if columns:
            fields, aside, origin = self._chosen(row, names, columns)
        else:
            fields = {ours: row[name] for name, ours in names.items()}
        if self.template is not None:
            fields[PROMPT[0]] = self.template.of(row)
        view = Row(fields, aside, self.verdicts)
        name, record = detect(view, self.fitting)
        mark = view.peek("split")
        split = mark if isinstance(mark, str) else None
        if split is not None:
            view.take("split")
        self.used |= view.used
        for ours in view.used:
            self.read_columns.update(origin.get(ours, ()))
        unread = view.unread()
        if unread or view.aside:
            self.unread.update([*(each for ours in unread for each in origin.get(ours, ())), *view.aside])
            unread |= view.aside
        self.layouts[f"{product} {record.shape}" if product else name] += 1
        if self.rule.invert:
            record = inverted(record)
        return record.placed(self.path, line, split, unread)

    def _names(self, row: Mapping[str, object]) -> tuple[dict[str, str], Origin]:
        """(the row's columns -> our names of them, the reverse). Rows with the same columns share them."""
        names = tuple(row)
        known = self.named.get(names)
        if known is None:
            self.seen.update(dict.fromkeys(names))
            ours: dict[str, str] = {}
            for name in names:
                # Of two columns with one meaning, such as Label and LABEL, the first is read.
                field = self._field(name, row)
                ours[name] = name if field in ours.values() else field
            known = ours, {field: [name] for name, field in ours.items()}
            if len(self.named) < MOST_KNOWN:
                self.named[names] = known
        return known

    def _chosen(
        self, row: Mapping[str, object], names: Mapping[str, str], columns: Mapping[str, Column]
    ) -> tuple[dict[str, object], dict[str, object], Origin]:
        """(our fields, the columns that the user's own displace, our name -> the columns that it is made of)."""
        given = {ours: column.of(row) for ours, column in columns.items()}
        given = {ours: value for ours, value in given.items() if value is not ABSENT and value is not None}
        origin = {ours: columns[ours].names(row) for ours in given}
        taken = {name for each in origin.values() for name in each}
        fields: dict[str, object] = {}
        aside: dict[str, object] = {}
        for name, ours in names.items():
            if ours in self.displaced:
                if row[name] is not None:
                    aside[name] = row[name]
            elif name not in taken:
                fields[ours] = row[name]
                origin.setdefault(ours, [name])
        self.found.update(given)
        return fields | given, aside, origin

    def _field(self, name: str, row: Mapping[str, object]) -> str:
        """Our name of a column that is spelled otherwise, such as "User message"; else the name itself."""
        if name not in self.known:
            self.known[name] = name if name in FIELDS else FOLDED.get(folded(name), name)
        ours = self.known[name]
        return name if ours != name and ours in row else ours

    def check_names(self, path: str) -> None:
        """Raise UserError where an export holds feedback of several names and the user chose none, or another."""
        if not self.names:
            return
        shown = ", ".join(f"{name} ({count:,})" for name, count in self.names.most_common())
        if len(self.names) > 1 and not self.wanted:
            first = next(iter(self.names))
            raise UserError(f"{path} holds feedback of several names: {shown}. Choose one: `columns=label={first}`")
        missing = [theirs for theirs in self.wanted.values() if theirs not in self.names]
        if missing:
            raise UserError(f"{path} has no feedback named {missing[0]}: there are {shown}")

    def check_renames(self) -> None:
        """Raise UserError if no row has a column that the user named, or no layout reads it."""
        for ours, theirs in self.renames.items():
            if ours not in self.found:
                names = ", ".join(self.seen)
                raise UserError(f"`columns` has {ours}={theirs}, and no row has a column {theirs}: there are {names}")
            if ours not in self.used and not self.names:
                layouts = ", ".join(self.layouts) or "no layout"
                raise UserError(
                    f"`columns` has {ours}={theirs}, and these rows are read as {layouts}, which does not use {ours}: "
                    f"leave it out, or leave out the columns that it contradicts"
                )

    def nothing_read(self, path: str, problems: Sequence[Problem]) -> UserError:
        """The error for a file without a usable row."""
        if not problems:
            return UserError(f"{path}: no rows")
        reason = f"{path}: none of its {len(problems)} rows can be used; line {problems[0].line}: {problems[0].reason}"
        return UnknownColumns(reason, self.sample) if self.sample else UserError(reason)


def inverted(record: Record) -> Record:
    """The record with the reverse of what it says."""
    values = tuple(-value for value in record.values)
    if record.shape == "pair":
        return replace(record, completions=record.completions[::-1], values=values[::-1])
    return replace(record, values=values)
