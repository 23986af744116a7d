// The operations as registration.cpp sees them. Shapes are in DESIGN.md, section 3.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace efcn_sparse::cpu {

// y [N, out] = alpha * (x [N, in] W^T + bias [out]) + beta * y; with transpose x [N, out] W, y [N, in], bias [in].
void spmm(at::Tensor& y, const at::Tensor& x, const at::Tensor& values, const std::optional<at::Tensor>& bias,
          at::TensorList structure, at::IntArrayRef shape, bool transpose, double alpha, double beta);

// values [nnz, rows, cols] = alpha * (a [N, out]^T b [N, in] at the stored blocks) + beta * values, 0 off the support.
// values has the dtype of a and b, or is float32 and they have 16 bits. `column_sums` [out], if it is given, becomes those
// of a.
void sddmm(at::Tensor& values, const at::Tensor& a, const at::Tensor& b, at::TensorList structure,
           at::IntArrayRef shape, double alpha, double beta, const at::Tensor& column_sums = {});

// [out], of a [N, out]: the gradient of a bias, bit for bit that of sddmm.
at::Tensor column_sums(const at::Tensor& a);

// [3] float64, squared: of the tied part of values, of what the copies differ by, of what lies off the local blocks.
at::Tensor subspace_squares(const at::Tensor& values, at::TensorList plan);

// Sets values to their tied part, or without tie only what lies off the local blocks to zero.
void subspace_project(at::Tensor& values, at::TensorList plan, bool tie);

}  // namespace efcn_sparse::cpu
