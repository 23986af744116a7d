// A pattern's tensors as a walk, looked at before anything follows them.
#pragma once

#include <ATen/core/Tensor.h>

#include "walk.h"

namespace efcn_sparse::cpu {

inline const int32_t* checked_index(const at::Tensor& index, int64_t size, const char* name) {
  TORCH_CHECK(index.scalar_type() == at::kInt && index.is_contiguous(), name, " must be contiguous int32");
  TORCH_CHECK(index.numel() == size, name, " must be [", size, "], got [", index.numel(), "]");
  return index.const_data_ptr<int32_t>();
}

// The blocks by row, or with transpose by column. Indices are looked at in every call, so that kernels stay within memory
// whatever comes: writing through .data or NumPy moves no version counter, by which an earlier look could be known.
struct Structure {
  Walk walk;
  Masks masks;

  Structure(at::TensorList parts, at::IntArrayRef shape, const at::Tensor& values, bool transpose);
};

}  // namespace efcn_sparse::cpu
