"""One module for each backend, best first. A backend never imports another.

A backend is a module with

- ``NAME``, and ``why_not(device, dtype) -> str | None``: the reason why it cannot run there, None if it can;
- ``ONLY_BY_NAME``, if it likes: device types where it can run but ``"auto"`` passes it over;
- ``choices(pattern, batch, dtype, device)``, if it likes: for each operation the tile that it takes, and why, in words;
- ``spmm(y, x, values, bias, structure, shape, transpose, alpha, beta)``: y = alpha · (x Wᵀ + bias) + beta · y
  (x W with ``transpose``); y is not read when beta is 0;
- ``sddmm(out, a, b, structure, shape, alpha, beta)``: out = alpha · (aᵀ b at the stored blocks) + beta · out, zero
  outside the support; out is not read when beta is 0.

Tensors arrive checked: matrices on one device, of one dtype, rows contiguous (`stride(1) == 1`), at least one row.
"""

from efcn_sparse.ops.backends import cpu, reference, triton

BACKENDS = {backend.NAME: backend for backend in (cpu, triton, reference)}
