"""The proof as a table for people: one column for each precision, beside what its gate asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from histoseg_export.gates import TOLERANCE
from histoseg_export.parity import JUDGED_SHARE, ClassDice, Parity

if TYPE_CHECKING:
    from rich.table import Table


def build_proof_table(parities: Sequence[Parity]) -> Table:
    """Return the figures of files that were proven on the same tiles; those that fail their gate are red."""
    from rich.table import Table

    first = parities[0]
    title = f"{first.reference} against ONNX, {first.tiles} tiles of {first.source}"
    table = Table(title=title, title_justify="left")
    table.add_column("figure")
    for parity in parities:
        table.add_column(parity.gate.precision, justify="right")
        table.add_column("gate", justify="right")
    for name, cells in _iter_rows(parities):
        table.add_row(name, *cells)
    return table


def _iter_rows(parities: Sequence[Parity]) -> list[tuple[str, list[str]]]:
    truth = parities[0].judged_against == "truth masks"
    against = "the masks" if truth else "the source model"
    rows = [
        ("labels that agree", [cell for parity in parities for cell in _label_cells(parity)]),
        (f"|dp| > {TOLERANCE:g}, ppm", [cell for parity in parities for cell in _off_cells(parity)]),
        ("max |dp|", [cell for parity in parities for cell in (f"{parity.max_abs:.2g}", "")]),
        ("mean |dp|", [cell for parity in parities for cell in (f"{parity.mean_abs:.2g}", "")]),
    ]
    for index, entry in enumerate(parities[0].classes):
        cells = [c for parity in parities for c in (_dice_cell(parity.classes[index], truth=truth), "")]
        rows.append((f"Dice {entry.name}, to {against}", cells))
    rows.append(("largest drop of Dice", [cell for parity in parities for cell in _drop_cells(parity)]))
    source = parities[0].source_ms_per_tile
    label = "ms per tile" if source is None else f"ms per tile (source {source:.0f})"
    rows.append((label, [cell for parity in parities for cell in (_number(parity.ms_per_tile, ".1f"), "")]))
    return rows


def _label_cells(parity: Parity) -> tuple[str, str]:
    found = f"{parity.label_agreement:.4%} ({parity.differing_pixels} px differ)"
    held = parity.label_agreement >= parity.gate.min_labels
    return _mark(found, held=held), f">= {parity.gate.min_labels:.2%}"


def _off_cells(parity: Parity) -> tuple[str, str]:
    limit = parity.gate.max_off_ppm
    found = f"{parity.off_ppm:.0f}"
    if limit is None:
        return found, "not judged"
    return _mark(found, held=parity.off_ppm <= limit), f"<= {limit:g}"


def _drop_cells(parity: Parity) -> tuple[str, str]:
    limit, drop = parity.gate.max_dice_drop, parity.dice_drop
    found = _number(drop, ".4f")
    if limit is None or drop is None:
        return found, "not judged"
    return _mark(found, held=drop <= limit), f"<= {limit:g}"


def _dice_cell(entry: ClassDice, *, truth: bool) -> str:
    if not truth:
        found = "not present" if entry.dice is None else f"{entry.dice:.4f}"
    else:
        found = f"{_number(entry.truth_dice, '.4f')} (source {_number(entry.source_truth_dice, '.4f')})"
    return found if entry.share >= JUDGED_SHARE or entry.dice is None else f"{found}, too few pixels to judge"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _mark(text: str, *, held: bool) -> str:
    return text if held else f"[red]{text}[/red]"
