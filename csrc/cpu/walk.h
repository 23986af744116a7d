// A pattern as the CPU kernels walk it. This file and the kernels that include no other need no tensors, and few seconds to
// compile.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

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

  // The first block row of each strip of `together`. Threads that take those with most blocks first end at one time.
  std::vector<int64_t> strips(int64_t together, bool longest_first) const {
    std::vector<int64_t> firsts;
    for (int64_t i = 0; i < rows; i += together) firsts.push_back(i);
    const auto blocks = [&](int64_t i) { return starts[std::min(rows, i + together)] - starts[i]; };
    if (longest_first)
      std::stable_sort(firsts.begin(), firsts.end(), [&](int64_t a, int64_t b) { return blocks(a) > blocks(b); });
    return firsts;
  }
};

}  // namespace efcn_sparse::cpu
