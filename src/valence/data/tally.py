"""What is counted of records while they are read, so that none of them has to be kept for it."""

from __future__ import annotations

from array import array
from collections import Counter

from valence.data.records import Record, Text, contents


class Tally:
    """Counts of records, and an example of each side. Texts are counted by hashes of eight bytes.

    Attributes:
        shapes: shape -> records.
        signs: +1, -1 and 0 (unlabelled) -> records of labels.
        splits: split mark -> records; "" for those without a mark.
        score_range: lowest and highest score, if there are scores.
        orders: rankings without scores.
        ties: pairs with equal scores.
        empty_prompts: records with a completion and no prompt.
    """

    def __init__(self) -> None:
        self.shapes: Counter[str] = Counter()
        self.signs: Counter[int] = Counter()
        self.splits: Counter[str] = Counter()
        self.score_range: tuple[float, float] | None = None
        self.orders = self.ties = self.empty_prompts = self._completions = self._letters = 0
        self._prompts = array("q")
        self._signed = {1: array("q"), -1: array("q")}
        self._judged: dict[int, Counter[bool]] = {}
        self._sides: dict[str, Record] = {}
        self._best: tuple[float, Record] | None = None
        self._worst: tuple[float, Record] | None = None

    def add(self, record: Record) -> None:
        """Count a record."""
        shape, prompt, values = record.shape, record.prompt, record.values
        self.shapes[shape] += 1
        self.splits[record.split or ""] += 1
        self._prompts.append(hash(prompt))
        for text in record.completions:
            self._completions += 1
            self._letters += len(text) if isinstance(text, str) else sum(map(len, contents(text)))
        if shape != "prompt" and not (prompt if isinstance(prompt, str) else any(contents(prompt))):
            self.empty_prompts += 1
        if "annotator" in record.columns and shape in ("label", "pair"):
            self._judge(record)
        if shape == "label":
            sign = int(values[0])
            self.signs[sign] += 1
            if sign:
                self._signed[sign].append(hash((prompt, record.completions)))
                self._sides.setdefault("accepted" if sign > 0 else "rejected", record)
            return
        if record.scored and values:
            low, high = self.score_range or (values[0], values[0])
            self.score_range = min(low, *values), max(high, *values)
        if shape == "pair":
            self._sides.setdefault("pair", record)
            self.ties += record.scored and len(set(values)) == 1
        elif values:
            self.orders += not record.scored
            if self._best is None or max(values) > self._best[0]:
                self._best = max(values), record
            if self._worst is None or min(values) < self._worst[0]:
                self._worst = min(values), record

    def _judge(self, record: Record) -> None:
        """Count one annotator's verdict on a completion, or on two of them."""
        if record.shape == "pair":
            first, second = map(hash, record.completions)
            what, verdict = (record.prompt, min(first, second), max(first, second)), first < second
        elif record.values[0]:
            what, verdict = (record.prompt, *record.completions), record.values[0] > 0
        else:
            return
        self._judged.setdefault(hash(what), Counter())[verdict] += 1

    @property
    def agreement(self) -> tuple[int, float, float] | None:
        """(what several annotators judged, the share of their pairs that agree, Krippendorff's alpha for nominal
        data), or None where no two annotators judged the same."""
        several = [counts for counts in self._judged.values() if counts.total() > 1]
        if not several:
            return None
        total = sum(counts.total() for counts in several)
        apart = sum(2 * counts[True] * counts[False] / (counts.total() - 1) for counts in several) / total
        pairs = sum(counts.total() * (counts.total() - 1) for counts in several)
        agreed = sum(each * (each - 1) for counts in several for each in counts.values()) / pairs
        up = sum(counts[True] for counts in several)
        by_chance = 2 * up * (total - up) / (total * (total - 1))
        return len(several), agreed, 1 - apart / by_chance if by_chance else 1.0

    @property
    def prompts(self) -> int:
        """Number of distinct prompts."""
        return _distinct(self._prompts)

    @property
    def conflicts(self) -> int:
        """Number of completions of a prompt that are both accepted and rejected."""
        accepted, rejected = self._signed.values()
        return _distinct(accepted) + _distinct(rejected) - _distinct(accepted + rejected)

    @property
    def mean_length(self) -> float:
        """Mean length of a completion, in characters."""
        return self._letters / self._completions if self._completions else 0.0

    @property
    def examples(self) -> dict[str, str]:
        """An example of each side that the rows were read as: accepted and rejected, better and worse, high and low."""
        found: dict[str, str] = {}
        for side in ("accepted", "rejected"):
            if side in self._sides:
                found[side] = shortened(self._sides[side].prompt, self._sides[side].completions[0])
        if "pair" in self._sides:
            pair = self._sides["pair"]
            found |= {"better": shortened(pair.prompt, pair.completions[0])}
            found |= {"worse": shortened(pair.prompt, pair.completions[1])}
        for side, extreme in (("the best", self._best), ("the worst", self._worst)):
            if extreme is not None:
                value, record = extreme
                name = f"{side}, {value:g}" if record.scored else side
                found[name] = shortened(record.prompt, record.completions[record.values.index(value)])
        return found


def _distinct(hashes: array[int]) -> int:
    """How many different ones there are. Sorting takes less memory than a set."""
    last, count = None, 0
    for each in sorted(hashes):
        count += each != last
        last = each
    return count


def shortened(prompt: Text, completion: Text) -> str:
    """A completion and the end of its prompt, on one line."""
    asked, answer = (" ".join(" ".join(contents(text)).split()) for text in (prompt, completion))
    asked = f"… {asked[-40:]}" if len(asked) > 42 else asked
    answer = f"{answer[:60]} …" if len(answer) > 62 else answer
    return f"{asked!r} → {answer!r}" if asked else repr(answer)
