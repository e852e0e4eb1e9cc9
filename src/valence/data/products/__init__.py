"""Exports of the products where people give feedback: one file each, which turns an exported row into our own layouts.

A product's module has `NAME`, `matches(row)` and `rows(row)`. To add one, write the module and name it in `PRODUCTS`.
"""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, Sequence, ValuesView
from dataclasses import dataclass

from valence.data.formats.row import Skipped
from valence.data.products import (
    arena,
    argilla,
    chainlit,
    gradio,
    label_studio,
    langfuse,
    langsmith,
    mlflow,
    openai_logs,
    openwebui,
    phoenix,
    prodigy,
    weave,
)

Fields = Mapping[str, object]
Unit = dict[str, object] | Skipped
"""One piece of feedback as a row of our own layouts, or why it says nothing."""


@dataclass(frozen=True)
class Product:
    """A product's export.

    Args:
        name: the product.
        matches: whether a row is of this export.
        rows: the feedback in an exported row; it raises Refused for a row that cannot be used.
        whole: (line, row) of a whole file -> (line, outcome), where a row may take back an earlier one.
        compare: pieces of feedback with one `comparison` -> one piece, where an answer has a row of its own.
        joins: whether a row of the joined file has to be gathered first.
        gather: rows of the joined file -> rows that can be joined.
    """

    name: str
    matches: Callable[[Fields], bool]
    rows: Callable[[Fields], Iterator[Unit]]
    whole: Callable[[Iterable[tuple[int, Fields]]], Iterator[tuple[int, dict[str, object] | Exception]]] | None = None
    compare: Callable[[Sequence[Fields]], Unit] | None = None
    joins: Callable[[Fields], bool] | None = None
    gather: Callable[[Iterable[Fields]], Iterator[dict[str, object]]] | None = None


PRODUCTS = (
    Product(openwebui.NAME, openwebui.matches, openwebui.rows),
    Product(langfuse.NAME, langfuse.matches, langfuse.rows, joins=langfuse.joins, gather=langfuse.gather),
    Product(langsmith.NAME, langsmith.matches, langsmith.rows, compare=langsmith.compare),
    Product(argilla.NAME, argilla.matches, argilla.rows),
    Product(label_studio.NAME, label_studio.matches, label_studio.rows),
    Product(arena.NAME, arena.matches, arena.rows),
    Product(chainlit.NAME, chainlit.matches, chainlit.rows, joins=chainlit.joins, gather=chainlit.gather),
    Product(gradio.NAME, gradio.matches, gradio.rows, whole=gradio.group),
    Product(prodigy.NAME, prodigy.matches, prodigy.rows),
    Product(weave.NAME, weave.matches, weave.rows),
    Product(mlflow.NAME, mlflow.matches, mlflow.rows),
    Product(phoenix.NAME, phoenix.matches, phoenix.rows),
    Product(openai_logs.NAME, openai_logs.matches, openai_logs.rows),
)
repair = gradio.repair
"""(header, cells of another number) -> the cells by their names, or None."""


class _Watched(dict[str, object]):
    """A row that notes whether a value of it is looked at, and not only its names."""

    looked = False

    def get(self, name: str, default: object = None) -> object:  # type: ignore[override]
        self.looked = self.looked or name in self
        return super().get(name, default)

    def __getitem__(self, name: str) -> object:
        self.looked = True
        return super().__getitem__(name)

    def values(self) -> ValuesView[object]:  # type: ignore[override]
        self.looked = True
        return super().values()

    def items(self) -> ItemsView[str, object]:  # type: ignore[override]
        self.looked = True
        return super().items()


class Products:
    """Finds the product of each row. A product that a row is not of, and that has looked at no value to see that, has
    no row with the same names: it is not asked again."""

    MOST_KNOWN = 1000

    def __init__(self) -> None:
        self._known: dict[tuple[str, ...], list[Product]] = {}

    def of(self, row: Fields) -> Product | None:
        """The product whose export a row is of, or None."""
        names = tuple(row)
        possible = self._known.get(names)
        if possible is None:
            possible = [each for each in PRODUCTS if _may_match(each, row)]
            if len(self._known) < self.MOST_KNOWN:
                self._known[names] = possible
        for product in possible:
            if product.matches(row):
                return product
        return None


def _may_match(product: Product, row: Fields) -> bool:
    """Whether a row with the names of this one can be of the product."""
    watched = _Watched(row)
    return product.matches(watched) or watched.looked


def joinable(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """The rows of a joined file, gathered where a product's rows have to be."""
    gather = next((each.gather for each in PRODUCTS if each.joins and rows and each.joins(rows[0])), None)
    return rows if gather is None else list(gather(rows))
