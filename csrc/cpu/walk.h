// A pattern as the CPU kernels walk it, and how they share the work.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

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

// The blocks by row, or with transpose by column. Indices are looked at in every call, so that kernels stay within memory
// whatever comes: writing through .data or NumPy moves no version counter, by which an earlier look could be known.
struct Structure {
  Walk walk;
  Masks masks;

  Structure(at::TensorList parts, at::IntArrayRef shape, const at::Tensor& values, bool transpose);
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
