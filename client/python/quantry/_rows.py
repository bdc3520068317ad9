"""Flat rows of what a result tells, the same of a job and of a pulled artifact."""
from __future__ import annotations

from typing import Any, Mapping, Optional

Row = dict[str, Any]


def losses_of(rtn: float, final: float) -> tuple[Optional[float], Optional[float]]:
    """A block's two losses; None where they were not measured, as without calibration: then the messages hold 0."""
    return (rtn, final) if final > 0 else (None, None)


def block_row(index: int, losses: tuple[float, float], seconds: float, metrics: Mapping[str, float]) -> Row:
    """One row a block; `losses` of rounding to nearest and of the method, as the messages hold them."""
    rtn, final = losses_of(*losses)
    row: Row = {"block": index, "loss_rtn": rtn, "loss_final": final,
                "improvement": 1 - final / rtn if rtn and final else None, "seconds": seconds}
    row.update((f"metric_{name}", value) for name, value in sorted(metrics.items()))
    return row
