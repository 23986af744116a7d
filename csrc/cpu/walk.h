// A pattern as the CPU kernels walk it, and how they share the work.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>

namespace efcn_sparse::cpu {

// Which entries of the stored blocks are in the support.
struct Masks {
  const int32_t* index;  // [nnz] into masks, -1 for none; null if no block is masked
  const uint8_t* masks;  // [n_masks, height, width]
  int64_t elements;      // height * width

  const uint8_t* of(int64_t block) const {
    if (index == nullptr || index[block] < 0) return nullptr;
    return masks + index[block] * elements;
  }
};

// One direction over the stored blocks: the product is out[:, i-th block] = sum over k of in[:, neighbors[k]] B_k.
struct Walk {
  const int32_t* starts;     // [rows + 1]
  const int32_t* neighbors;  // [nnz]
  const int32_t* block_of;   // [nnz], or null where the k-th block lies at k
  int64_t rows;
  int64_t out_features, in_features;
  int64_t out_side, in_side;  // sides of a block along out and in
  bool stored_out_by_in;      // a stored block is [out_side, in_side], not [in_side, out_side]

  int64_t block(int64_t k) const { return block_of == nullptr ? k : block_of[k]; }
  int64_t out_extent(int64_t i) const { return std::min(out_side, out_features - i * out_side); }
  int64_t in_extent(int64_t j) const { return std::min(in_side, in_features - j * in_side); }
};

inline const int32_t* checked_index(const at::Tensor& index, int64_t size, const char* name) {
  TORCH_CHECK(index.scalar_type() == at::kInt && index.is_contiguous(), name, " must be contiguous int32");
  TORCH_CHECK(index.numel() == size, name, " must be [", size, "], got [", index.numel(), "]");
  return index.const_data_ptr<int32_t>();
}

// Whether all numbers lie in [low, high], of which low is 0 or -1: signs of differences alone, which takes no branch.
inline bool all_in(const int32_t* numbers, int64_t size, int64_t low, int64_t high) {
  const auto least = static_cast<uint32_t>(low), most = static_cast<uint32_t>(high);
  uint32_t signs = 0;
  for (int64_t i = 0; i < size; ++i) {
    const auto number = static_cast<uint32_t>(numbers[i]);
    signs |= (number - least) | (most - number);
  }
  return signs >> 31 == 0;
}

inline bool ascends(const int32_t* starts, int64_t rows, int64_t nnz) {
  if (starts[0] != 0 || starts[rows] != nnz || !all_in(starts, rows + 1, 0, nnz)) return false;
  int32_t signs = 0;
  for (int64_t i = 0; i < rows; ++i) signs |= starts[i + 1] - starts[i];
  return signs >= 0;
}

// The blocks by row, or with transpose by column. Whatever comes, kernels stay within memory: indices are looked at in
// every call, since writing through .data or NumPy moves no version counter, by which a check could be remembered.
struct Structure {
  Walk walk;
  Masks masks;

  Structure(at::TensorList parts, at::IntArrayRef shape, const at::Tensor& values, bool transpose) {
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
};

// Tasks are taken from a counter: each writes its own part of the result, so the order does not change a number.
// As many threads as repay waking them, which takes about as long as 2^17 multiplications.
inline int64_t threads_for(int64_t multiplications) {
  return std::clamp<int64_t>(multiplications >> 17, 1, at::get_num_threads());
}

// Runs worker(next) on every thread, where next() is the number of a task not yet taken, or -1.
template <typename Worker>
void share_tasks(int64_t tasks, Worker&& worker, int64_t most_threads = at::get_num_threads()) {
  const int64_t threads = std::max<int64_t>(1, std::min(most_threads, tasks));
  std::atomic<int64_t> taken{0};
  auto next = [&]() -> int64_t {
    const int64_t task = taken.fetch_add(1, std::memory_order_relaxed);
    return task < tasks ? task : -1;
  };
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    if (begin < end) worker(next);
  });
}

}  // namespace efcn_sparse::cpu
