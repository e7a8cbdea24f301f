"""2:4 weights on sparse tensor cores, by a kernel that is off until it has proved itself on the card at hand.

It reads nothing of the weight but packed bytes and decodes none of them: of all 2:4 kernels for few rows of x it asks
the least of a card. Its speed is not yet measured.
"""

from __future__ import annotations

from torch import Tensor

from lightning_nm.kernels import on_gpu
from lightning_nm.kernels.cusparselt import is_two_of_four
from lightning_nm.patterns import NM, Block1xN
from lightning_nm.sparse.backends import BACKENDS, Operand
from lightning_nm.sparse.gpu_backends import Gpu, GpuOperand, matrix, whole_groups


class SparseMma(Gpu):
    """For 2:4 weights, and those sparser ones that are 2:4 too."""

    name = "sparse_mma"
    most = 128  # the weight is read once for 64 rows

    def _why_not(self, weight: Tensor, pattern: NM | Block1xN, dim: int) -> str | None:
        if not is_two_of_four(matrix(weight, dim)):
            return "sparse tensor cores multiply 2:4 weights only"
        return on_gpu.no_sparse_mma(weight.device, weight.dtype)

    def hold(self, weight: Tensor, pattern: NM | Block1xN, dim: int) -> Operand:
        rows, mask = whole_groups(matrix(weight, dim), 2, 4)
        packed, outputs = on_gpu.pack_sparse_mma(rows, mask), len(rows)
        return GpuOperand(outputs, lambda x, bias: on_gpu.sparse_tensor_cores(x, *packed, bias, outputs))


BACKENDS["sparse_mma"] = SparseMma()
