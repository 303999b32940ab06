"""Small cells: the scores of a combination that too few patients of a site have are never sent alone."""

from __future__ import annotations

from collections.abc import Mapping

from flexmoe_core.scores import Scores


def merge_small_cells(cells: Mapping[int, Scores], minimum: int) -> dict[int | None, Scores]:
    """A site's scores by combination (bitmask), every returned cell of at least ``minimum`` patients.

    Smaller cells are merged into the key None. While their sum is itself below ``minimum``, the next smallest
    cell (ties: the lower mask) joins it, because what is left out would follow from the site's total by
    subtraction. The returned cells add up to the site's total; {} if that is below ``minimum``. Masks ascend,
    None comes last; combinations without patients vanish.
    """
    by_size = sorted((scores.n, mask) for mask, scores in cells.items() if scores.n)
    merged: list[int] = []
    merged_n = 0
    for n, mask in by_size:
        if n >= minimum and (merged_n == 0 or merged_n >= minimum):
            break
        merged.append(mask)
        merged_n += n
    if 0 < merged_n < minimum:
        return {}
    kept: dict[int | None, Scores] = {mask: cells[mask] for mask in sorted(mask for _, mask in by_size)}
    if merged:
        kept[None] = sum((kept.pop(mask) for mask in merged[1:]), start=kept.pop(merged[0]))
    return kept
