"""Plain-text and Markdown tables, and lists in sentences."""

from __future__ import annotations

from collections.abc import Sequence


def shortened(items: Sequence[object], most: int) -> str:
    """Return the first items, comma-separated, and how many more there are."""
    rest = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(map(str, items[:most])) + rest


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Return a table with rules above and below, columns padded to their widest cell.

    Args:
        header: One title a column.
        rows: Cells, one for each title.
        left: Indices of left-aligned columns; the others are right-aligned.
    """
    widths = [max(len(str(row[column])) for row in (header, *rows)) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.ljust(width) if index in left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(padded).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([rule, line(header), rule, *(line(row) for row in rows), rule])


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Return the same table as GitHub-flavoured Markdown."""
    marks = [":---" if index in left else "---:" for index in range(len(header))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, marks, *rows))
