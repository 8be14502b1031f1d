"""The proof as a table for people: one column for each precision, what its gate asks under each figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from histoseg_export.gates import TOLERANCE
from histoseg_export.parity import JUDGED_SHARE, Parity

if TYPE_CHECKING:
    from rich.table import Table


def build_proof_table(parities: Sequence[Parity]) -> Table:
    """Return the figures of files that were proven on the same tiles; those that fail their gate are red."""
    from rich.table import Table

    first = parities[0]
    table = Table(
        title=f"{first.reference} against ONNX, {first.tiles} tiles of {first.source}", title_justify="left"
    )
    table.add_column("figure")
    for parity in parities:
        table.add_column(parity.gate.precision, justify="right", no_wrap=True)

    def add(name: str, tell: Callable[[Parity], str]) -> None:
        table.add_row(name, *(tell(parity) for parity in parities))

    add("labels that agree", _tell_labels)
    add("  at least", lambda parity: f"{parity.gate.min_labels:.2%}")
    add("pixels that differ", lambda parity: f"{parity.differing_pixels}")
    add(f"|dp| > {TOLERANCE:g}, ppm", _tell_off)
    add("  at most", lambda parity: _number(parity.gate.max_off_ppm, "g", "not judged"))
    add("max |dp|", lambda parity: f"{parity.max_abs:.2g}")
    add("mean |dp|", lambda parity: f"{parity.mean_abs:.2g}")
    for index, name in enumerate(_name_classes(first)):
        add(name, lambda parity, index=index: _tell_dice(parity, index))  # type: ignore[misc]
    add("largest drop of Dice", _tell_drop)
    add("  at most", lambda parity: _number(parity.gate.max_dice_drop, "g", "not judged"))
    source = "" if first.source_ms_per_tile is None else f" (source {first.source_ms_per_tile:.0f})"
    add(f"ms per tile{source}", lambda parity: _number(parity.ms_per_tile, ".1f"))
    return table


def _name_classes(parity: Parity) -> list[str]:
    """Return the heading of each class, and what the source model reaches where there is a truth."""
    if parity.judged_against != "truth masks":
        return [f"Dice {entry.name}, to the source" for entry in parity.classes]
    return [
        f"Dice {entry.name} (source {_number(entry.source_truth_dice, '.4f')})" for entry in parity.classes
    ]


def _tell_labels(parity: Parity) -> str:
    held = parity.label_agreement >= parity.gate.min_labels
    return _mark(f"{parity.label_agreement:.4%}", held=held)


def _tell_off(parity: Parity) -> str:
    limit = parity.gate.max_off_ppm
    return _mark(f"{parity.off_ppm:.0f}", held=limit is None or parity.off_ppm <= limit)


def _tell_drop(parity: Parity) -> str:
    limit, drop = parity.gate.max_dice_drop, parity.dice_drop
    held = limit is None or drop is None or drop <= limit
    return _mark(_number(drop, "z.4f"), held=held)


def _tell_dice(parity: Parity, index: int) -> str:
    entry = parity.classes[index]
    dice = entry.truth_dice if parity.judged_against == "truth masks" else entry.dice
    if dice is None:
        return "not present"
    return f"{dice:.4f}" if entry.share >= JUDGED_SHARE else f"{dice:.4f} (few pixels)"


def _number(value: float | None, form: str, absent: str = "-") -> str:
    return absent if value is None else format(value, form)


def _mark(text: str, *, held: bool) -> str:
    return text if held else f"[red]{text}[/red]"
