// Memory of large tensors: in huge pages, and kept when it is freed, for the next tensor of about that size.
#pragma once

#include <ATen/core/Tensor.h>

namespace efcn_sparse::cpu {

// As at::empty and at::empty_strided, from kept memory where it is large.
at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options,
                 at::MemoryFormat format = at::MemoryFormat::Contiguous);
at::Tensor empty_strided(at::IntArrayRef sizes, at::IntArrayRef strides, const at::TensorOptions& options);

// Gives back what is kept.
void empty_cache();

// Asks Linux for pages of 2 MiB where the tensor is large, which helps before the first number is written.
void in_huge_pages(const at::Tensor& fresh);

}  // namespace efcn_sparse::cpu
