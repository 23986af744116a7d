#include "structure.h"

namespace efcn_sparse::cpu {
namespace {

// Whether all numbers lie in [low, high], of which low is 0 or -1: signs of differences alone, which takes no branch.
bool all_in(const int32_t* numbers, int64_t size, int64_t low, int64_t high) {
  const auto least = static_cast<uint32_t>(low), most = static_cast<uint32_t>(high);
  uint32_t signs = 0;
  for (int64_t i = 0; i < size; ++i) {
    const auto number = static_cast<uint32_t>(numbers[i]);
    signs |= (number - least) | (most - number);
  }
  return signs >> 31 == 0;
}

bool ascends(const int32_t* starts, int64_t rows, int64_t nnz) {
  if (starts[0] != 0 || starts[rows] != nnz || !all_in(starts, rows + 1, 0, nnz)) return false;
  int32_t signs = 0;
  for (int64_t i = 0; i < rows; ++i) signs |= starts[i + 1] - starts[i];
  return signs >= 0;
}

}  // namespace

Structure::Structure(at::TensorList parts, at::IntArrayRef shape, const at::Tensor& values, bool transpose) {
  TORCH_CHECK(parts.size() == 7 && shape.size() == 2 && values.dim() == 3, "structure must list 7 tensors");
  TORCH_CHECK(values.is_contiguous(), "values must be contiguous");
  const int64_t nnz = values.size(0), height = values.size(1), width = values.size(2);
  TORCH_CHECK_VALUE(height > 0 && width > 0, "values must hold blocks, got ", values.sizes());
  const int64_t rows = (shape[0] + height - 1) / height, cols = (shape[1] + width - 1) / width;
  if (transpose)
    walk = {checked_index(parts[2], cols + 1, "ccol_indices"),
            checked_index(parts[3], nnz, "row_indices"),
            checked_index(parts[4], nnz, "block_order"),
            cols,
            shape[1],
            shape[0],
            width,
            height,
            false};
  else
    walk = {checked_index(parts[0], rows + 1, "crow_indices"),
            checked_index(parts[1], nnz, "col_indices"),
            nullptr,
            rows,
            shape[0],
            shape[1],
            height,
            width,
            true};
  const int64_t across = transpose ? rows : cols;
  TORCH_CHECK_VALUE(ascends(walk.starts, walk.rows, nnz), transpose ? "ccol_indices" : "crow_indices",
                    " must ascend from 0 to ", nnz);
  TORCH_CHECK_VALUE(all_in(walk.neighbors, nnz, 0, across - 1), transpose ? "row_indices" : "col_indices",
                    " must lie in [0, ", across, ")");
  TORCH_CHECK_VALUE(!transpose || all_in(walk.block_of, nnz, 0, nnz - 1), "block_order must lie in [0, ", nnz, ")");
  masks = {nullptr, nullptr, height * width};
  if (parts[6].size(0) > 0) {
    TORCH_CHECK(
        parts[6].is_contiguous() && parts[6].scalar_type() == at::kByte && parts[6].numel() % masks.elements == 0,
        "masks must be contiguous uint8 [n, ", height, ", ", width, "]");
    masks.index = checked_index(parts[5], nnz, "mask_index");
    masks.masks = parts[6].const_data_ptr<uint8_t>();
    const int64_t count = parts[6].numel() / masks.elements;
    TORCH_CHECK_VALUE(all_in(masks.index, nnz, -1, count - 1), "mask_index must lie in [-1, ", count, ")");
  }
}

}  // namespace efcn_sparse::cpu
