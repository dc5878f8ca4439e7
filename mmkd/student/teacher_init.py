"""Student tables from teachers: a teacher [N, d_t] to a table [N, d] at a chosen scale.

KDSR (arXiv:2401.07257), section 3, starts the student's tables from the reduced teacher; these
are the linear map and the scale for it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def fit_width(table: Tensor, width: int) -> Tensor:
    """Map rows to `width` columns, keeping inner products as well as a linear map can.

    A narrower target takes the leading eigenvectors of the second moment `X^T X`: of all
    orthogonal projections that one keeps the Gram matrix best (Eckart and Young). On columns that
    come from PCA it picks the leading ones. Each eigenvector's largest entry is made positive, so
    the result is the same on every run.

    Args:
        table: [N, d_t], missing rows zero.
        width: d.

    Returns:
        [N, d]; `table` itself when the widths agree, zero columns appended when d is larger.
    """
    extra = width - table.shape[1]
    if extra >= 0:
        return F.pad(table, (0, extra)) if extra else table
    exact = table.double()
    _, vectors = torch.linalg.eigh(exact.mT @ exact)  # ascending eigenvalues
    basis = vectors.flip(1)[:, :width]  # [d_t, d]
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))  # [1, d]
    fitted: Tensor = exact @ (basis * largest.sign())
    return fitted.to(table.dtype)


def scale_rows(table: Tensor, present: Tensor, *, norm: float) -> Tensor:
    """Multiply a table by the one factor that gives its present rows this mean norm.

    Args:
        table: [N, d].
        present: [N] bool.
        norm: Wanted mean Euclidean norm.

    Returns:
        [N, d]; a table of zeros, or without any present row, comes back unchanged.
    """
    norms = table[present].norm(dim=1)
    mean = norms.mean().item() if len(norms) else 0.0
    return table * (norm / mean) if mean > 0 else table
