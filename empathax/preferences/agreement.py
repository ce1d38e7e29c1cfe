"""Fleiss' kappa: how far several annotators agree beyond chance (Fleiss 1971, "Measuring nominal scale agreement among
many raters", Psychological Bulletin 76)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from empathax.errors import DataError


def fleiss_kappa(labels: Sequence[Sequence[str]]) -> float | None:
    """Kappa of `labels`: for each subject the category that each of n raters gave it (who rated may differ).

        p_j = share of all labels that are category j          Pe = sum p_j^2
        P_i = (sum_j n_ij^2 - n) / (n (n - 1))                  kappa = (mean P_i - Pe) / (1 - Pe)

    1 is full agreement, 0 what chance gives. None without subjects, or where all labels are one category (0/0).

    Raises:
        DataError: not the same number of raters, at least two, for every subject.
    """
    if not labels:
        return None
    sizes = {len(subject) for subject in labels}
    if len(sizes) > 1 or min(sizes) < 2:
        found = ", ".join(map(str, sorted(sizes)))
        raise DataError(
            f"found subjects with {found} raters: Fleiss' kappa needs the same number, at least 2, for each"
        )
    categories = sorted({label for subject in labels for label in subject})
    counts_NJ = np.array([[list(subject).count(name) for name in categories] for subject in labels], float)
    num_raters = sizes.pop()
    agreed_N = ((counts_NJ**2).sum(axis=1) - num_raters) / (num_raters * (num_raters - 1))
    by_chance = float(((counts_NJ.sum(axis=0) / counts_NJ.sum()) ** 2).sum())
    return None if by_chance == 1.0 else (float(agreed_N.mean()) - by_chance) / (1.0 - by_chance)
