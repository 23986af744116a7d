#pragma once

#include <ATen/core/Tensor.h>

namespace efcn_sparse::cpu {

// The tensor itself. Asks Linux for pages of 2 MiB where it is large, which helps before the first number is written.
at::Tensor in_huge_pages(at::Tensor fresh);

}  // namespace efcn_sparse::cpu
