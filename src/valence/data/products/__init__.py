"""Exports of the products where people give feedback: one file each, which turns an exported row into our own layouts.

A product's module has `NAME`, `matches(row)` and `rows(row)`. To add one, write the module and name it in `PRODUCTS`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from valence.data.formats.row import Skipped


class Product(Protocol):
    """What a product's module has."""

    NAME: str

    def matches(self, row: Mapping[str, object]) -> bool:
        """Whether a row is of this product's export."""
        ...

    def rows(self, row: Mapping[str, object]) -> Iterator[dict[str, object] | Skipped]:
        """The feedback in an exported row, as rows of our own layouts."""
        ...


PRODUCTS: tuple[Product, ...] = ()


def product_of(row: Mapping[str, object]) -> Product | None:
    """The product whose export a row is of, or None."""
    return next((product for product in PRODUCTS if product.matches(row)), None)


def repair(header: list[str], cells: list[str]) -> dict[str, str] | None:
    """The cells of a row of a table whose header a product writes wrongly, by their true names; else None."""
    return None
