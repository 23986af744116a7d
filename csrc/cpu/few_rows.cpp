// Weights are read once, as they are stored. Where a stored row runs along the input, sums of a few of them are held as
// vectors of partial sums, which are folded once a block row; where it runs along the output, it is added as it is.
// Vectors are written out below. To vectorize the scalar loops besides takes a third of the compile time for no speed.
#pragma GCC optimize("no-tree-vectorize")
#include "few_rows.h"

#include <c10/util/Half.h>

#include <algorithm>
#include <vector>

#include "operands.h"
#include "vectors.h"

namespace efcn_sparse::cpu {
namespace {

constexpr int64_t kLongest = 256;  // products in a chain of sums; longer ones round badly
constexpr int64_t kAhead = 4096;   // bytes of weights that are on their way: what memory delivers in its latency

// A block's numbers, zeros off its mask.
template <typename Stored, typename Sum>
EFCN_INLINE const Stored* numbers(const FewRows<Stored, Sum>& job, int64_t k, Stored* buffer) {
  const int64_t block = job.walk.block(k), elements = job.masks.elements;
  const uint8_t* mask = job.masks.of(block);
  const Stored* stored = job.values + block * elements;
  return mask == nullptr ? stored : block_operands(stored, mask, elements, buffer);
}

// A block with zeros in columns past `extent`.
template <typename Stored>
const Stored* inside(const Stored* block, int64_t elements, int64_t side, int64_t extent, Stored* buffer) {
  for (int64_t e = 0; e < elements; ++e) buffer[e] = e % side < extent ? block[e] : Stored(0);
  return buffer;
}

// Where block k + ahead lies; the last one for what would be past it.
template <typename Stored, typename Sum>
EFCN_INLINE const Stored* later(const FewRows<Stored, Sum>& job, int64_t k) {
  return job.values + job.walk.block(std::min<int64_t>(k, job.walk.starts[job.walk.rows] - 1)) * job.masks.elements;
}

// Adds what rows of block row i, stored along the input, have past their whole vectors.
template <typename Stored, typename Sum>
__attribute__((noinline)) void rest_dots(const FewRows<Stored, Sum>& job, int64_t i, int64_t width, Sum* sums,
                                         Stored* buffer) {
  const Walk& walk = job.walk;
  for (int64_t k = walk.starts[i]; k < walk.starts[i + 1]; ++k) {
    const int64_t j = walk.neighbors[k], extent = walk.in_extent(j), whole = extent - extent % width;
    if (whole == extent) continue;
    const Stored* w = numbers(job, k, buffer);
    const Sum* x = job.x + j * walk.in_side;
    for (int64_t r = 0; r < walk.out_extent(i); ++r, w += walk.in_side)
      for (int n = 0; n < job.batch; ++n) {
        Sum sum = 0;
        for (int64_t c = whole; c < extent; ++c) sum += static_cast<Sum>(w[c]) * x[n * job.ldx + c];
        sums[n * walk.out_side + r] += sum;
      }
  }
}

// Rows [row, row + Rows) of block row i, stored along the input.
template <int Bytes, int Rows, int Batch, typename Stored, typename Sum>
EFCN_INLINE void dots(const FewRows<Stored, Sum>& job, int64_t i, int64_t row, Sum* sums, Stored* buffer) {
  using V = typename Vector<Sum, Bytes>::type;
  constexpr int64_t width = Vector<Sum, Bytes>::width;
  const Walk& walk = job.walk;
  const int64_t ahead = kAhead / static_cast<int64_t>(Rows * walk.in_side * sizeof(Stored)) + 1;
  V partial[Rows][Batch] = {};
  for (int64_t k = walk.starts[i]; k < walk.starts[i + 1]; ++k) {
    const int64_t j = walk.neighbors[k], extent = walk.in_extent(j), side = walk.in_side;
    const Stored *w = numbers(job, k, buffer) + row * side, *next = later(job, k + ahead) + row * side;
    const Sum* x = job.x + j * side;
    for (int64_t c = 0; c + width <= extent; c += width) {
      V right[Batch];
#pragma GCC unroll 8
      for (int n = 0; n < Batch; ++n) load<Sum, Bytes>(x + n * job.ldx + c, right[n]);
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r) {
        V left;
        load<Sum, Bytes>(w + r * side + c, left);
        __builtin_prefetch(next + r * side + c);
#pragma GCC unroll 8
        for (int n = 0; n < Batch; ++n) partial[r][n] += left * right[n];
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < Batch; ++n) sums[n * walk.out_side + row + r] = folded<Sum, Bytes>(partial[r][n]);
}

template <int Bytes, int Rows, int Batch, typename Stored, typename Sum>
EFCN_INLINE void all_dots(const FewRows<Stored, Sum>& job, int64_t i, int64_t row, Sum* sums, Stored* buffer) {
  for (; row + Rows <= job.walk.out_extent(i); row += Rows) dots<Bytes, Rows, Batch>(job, i, row, sums, buffer);
  if constexpr (Rows > 1) return all_dots<Bytes, (Rows > 4 ? 4 : 1), Batch>(job, i, row, sums, buffer);
  constexpr int64_t width = Vector<Sum, Bytes>::width;
  const int64_t last = job.walk.neighbors[job.walk.starts[i + 1] - 1];  // no other one is ragged
  if (job.walk.in_side % width != 0 || job.walk.in_extent(last) % width != 0) rest_dots(job, i, width, sums, buffer);
}

// Adds partial sums to the sums, or writes them there, and begins anew.
template <int Chains, int Batch, int Vectors, typename V, typename Sum>
EFCN_INLINE void fold(V (&total)[Chains][Batch][Vectors], Sum* sums, int64_t side, bool add) {
  constexpr int64_t width = sizeof(V) / sizeof(Sum);
#pragma GCC unroll 8
  for (int n = 0; n < Batch; ++n)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      V& sum = *reinterpret_cast<V*>(sums + n * side + v * width);
      V here = total[0][n][v];
      for (int chain = 1; chain < Chains; ++chain) here += total[chain][n][v];
      sum = add ? sum + here : here;
      for (int chain = 0; chain < Chains; ++chain) total[chain][n][v] = V{};
    }
}

// Columns [column, column + Vectors * width) of block row i, stored along the output.
template <int Bytes, int Vectors, int Batch, typename Stored, typename Sum>
EFCN_INLINE void multiples(const FewRows<Stored, Sum>& job, int64_t i, int64_t column, Sum* sums, Stored* buffer) {
  using V = typename Vector<Sum, Bytes>::type;
  constexpr int64_t width = Vector<Sum, Bytes>::width;
  constexpr int kChains = 4 / (Vectors * Batch) > 1 ? 4 / (Vectors * Batch) : 1;  // that do not wait for each other
  const Walk& walk = job.walk;
  const int64_t ahead = kAhead / static_cast<int64_t>(walk.in_side * Vectors * Bytes) + 1;
  V total[kChains][Batch][Vectors] = {};
  int64_t summed = 0;
  bool add = false;
  for (int64_t k = walk.starts[i]; k < walk.starts[i + 1]; ++k) {
    const int64_t j = walk.neighbors[k], extent = walk.in_extent(j), side = walk.out_side;
    const Stored *w = numbers(job, k, buffer) + column, *next = later(job, k + ahead) + column;
    const Sum* x = job.x + j * walk.in_side;
    for (int64_t r = 0; r < extent;) {
      const int64_t end = std::min(extent, r + kLongest);
      summed += end - r;
      for (; r + kChains <= end; r += kChains)
#pragma GCC unroll 4
        for (int chain = 0; chain < kChains; ++chain) {
          V left[Vectors];
#pragma GCC unroll 4
          for (int v = 0; v < Vectors; ++v) {
            load<Sum, Bytes>(w + (r + chain) * side + v * width, left[v]);
            __builtin_prefetch(next + (r + chain) * side + v * width);
          }
#pragma GCC unroll 8
          for (int n = 0; n < Batch; ++n)
#pragma GCC unroll 4
            for (int v = 0; v < Vectors; ++v) total[chain][n][v] += left[v] * x[n * job.ldx + r + chain];
        }
      for (; kChains > 1 && r < end; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) {
          V left;
          load<Sum, Bytes>(w + r * side + v * width, left);
#pragma GCC unroll 8
          for (int n = 0; n < Batch; ++n) total[0][n][v] += left * x[n * job.ldx + r];
        }
      if (summed < kLongest && k + 1 < walk.starts[i + 1]) continue;
      fold(total, sums + column, side, add);
      add = true, summed = 0;
    }
  }
}

// Columns that fill no vector.
template <typename Stored, typename Sum>
__attribute__((noinline)) void last_multiples(const FewRows<Stored, Sum>& job, int64_t i, int64_t column, Sum* sums,
                                              Stored* buffer) {
  const Walk& walk = job.walk;
  const int64_t end = walk.out_extent(i);
  if (column >= end) return;
  for (int n = 0; n < job.batch; ++n)
    std::fill(sums + n * walk.out_side + column, sums + n * walk.out_side + end, Sum(0));
  for (int64_t k = walk.starts[i]; k < walk.starts[i + 1]; ++k) {
    const int64_t j = walk.neighbors[k];
    const Stored* w = numbers(job, k, buffer);
    for (int64_t c = column; c < end; ++c)
      for (int n = 0; n < job.batch; ++n) {
        Sum sum = 0;
        for (int64_t r = 0; r < walk.in_extent(j); ++r)
          sum += static_cast<Sum>(w[r * walk.out_side + c]) * job.x[n * job.ldx + j * walk.in_side + r];
        sums[n * walk.out_side + c] += sum;
      }
  }
}

template <int Bytes, int Vectors, int Batch, typename Stored, typename Sum>
EFCN_INLINE void all_multiples(const FewRows<Stored, Sum>& job, int64_t i, int64_t column, Sum* sums, Stored* buffer) {
  constexpr int64_t columns = Vectors * Vector<Sum, Bytes>::width;
  for (; column + columns <= job.walk.out_extent(i); column += columns)
    multiples<Bytes, Vectors, Batch>(job, i, column, sums, buffer);
  if constexpr (Vectors > 1) return all_multiples<Bytes, Vectors / 2, Batch>(job, i, column, sums, buffer);
  if constexpr (Vectors == 1 && Bytes > 16) return all_multiples<Bytes / 2, 1, Batch>(job, i, column, sums, buffer);
  last_multiples(job, i, column, sums, buffer);
}

// Blocks whose contiguous side fills no vector are long rows of numbers, each of which has its own partial sum: that of
// number e is multiplied with feature e % side of a row of x, or e / side where blocks are stored along the output.
template <int Bytes, typename Stored, typename Sum>
EFCN_INLINE void narrow(const FewRows<Stored, Sum>& job, int64_t i, Sum* sums, Stored* buffer) {
  using V = typename Vector<Sum, Bytes>::type;
  constexpr int64_t width = Vector<Sum, Bytes>::width;
  const Walk& walk = job.walk;
  const bool along = walk.stored_out_by_in;
  const int64_t side = along ? walk.in_side : walk.out_side, elements = job.masks.elements, ld = elements + width;
  const int64_t ahead = kAhead / static_cast<int64_t>(elements * sizeof(Stored)) + 1, out = walk.out_extent(i);
  std::vector<Sum> space(2 * job.batch * ld);
  Sum *partial = space.data(), *right = partial + job.batch * ld;
  for (int n = 0; n < job.batch; ++n) std::fill_n(sums + n * walk.out_side, out, Sum(0));
  for (int64_t k = walk.starts[i], chain = 1; k < walk.starts[i + 1]; ++k, ++chain) {
    const int64_t j = walk.neighbors[k], extent = walk.in_extent(j), rows = along ? out : extent;
    const Stored *w = numbers(job, k, buffer), *next = later(job, k + ahead);
    if (along && extent < side) w = inside(w, elements, side, extent, buffer);
    for (int n = 0; n < job.batch; ++n) {
      const Sum* x = job.x + n * job.ldx + j * walk.in_side;
      Sum row[width] = {};
      for (int64_t c = 0; along && c < extent; ++c) row[c] = x[c];
      for (int64_t r = 0; r < rows; ++r)  // a whole vector each: the next row overwrites what is too much
        *reinterpret_cast<V*>(right + n * ld + r * side) = along ? *reinterpret_cast<V*>(row) : x[r] - V{};
    }
    int64_t e = 0;
    for (; e + width <= rows * side; e += width) {
      V left;
      load<Sum, Bytes>(w + e, left);
      __builtin_prefetch(next + e);
      for (int n = 0; n < job.batch; ++n)
        *reinterpret_cast<V*>(partial + n * ld + e) += left * *reinterpret_cast<V*>(right + n * ld + e);
    }
    for (; e < rows * side; ++e)
      for (int n = 0; n < job.batch; ++n) partial[n * ld + e] += static_cast<Sum>(w[e]) * right[n * ld + e];
    if (k + 1 < walk.starts[i + 1] && chain % kLongest != 0) continue;
    for (int n = 0; n < job.batch; ++n)
      for (int64_t r = 0; r < elements / side; ++r)
        for (int64_t c = 0; c < side; ++c)
          if ((along ? r : c) < out) sums[n * walk.out_side + (along ? r : c)] += partial[n * ld + r * side + c];
    std::fill_n(partial, job.batch * ld, Sum(0));
  }
}

// The widest vectors that fit the side along which blocks are stored.
template <int Bytes, int Batch, typename Stored, typename Sum>
EFCN_INLINE void block_row(const FewRows<Stored, Sum>& job, int64_t i, Sum* sums, Stored* buffer) {
  constexpr int kSums = Bytes == 64 ? 16 : 8;
  constexpr int kShare = kSums / Batch;
  if (!job.walk.stored_out_by_in) return all_multiples<Bytes, std::min(4, kShare), Batch>(job, i, 0, sums, buffer);
  if constexpr (Bytes > 16 && Batch <= kVeryFewRows)
    if (job.walk.in_side < Vector<Sum, Bytes>::width) return block_row<Bytes / 2, Batch>(job, i, sums, buffer);
  all_dots<Bytes, kShare, Batch>(job, i, 0, sums, buffer);
}

// The kernel for `Batch` rows; 0 is for blocks that fill no vector.
template <int Bytes, int Batch, typename Stored, typename Sum>
EFCN_INLINE void any_row(const FewRows<Stored, Sum>& job, int64_t i, Sum* sums, Stored* buffer) {
  if constexpr (Batch == 0)
    narrow<Bytes>(job, i, sums, buffer);
  else
    block_row<Bytes, Batch>(job, i, sums, buffer);
}

template <int Batch, typename Stored, typename Sum>
void anywhere(const FewRows<Stored, Sum>& job, int64_t i, Sum* sums, Stored* buffer) {
  any_row<16, Batch>(job, i, sums, buffer);
}

#if defined(__x86_64__)
template <int Batch, typename Stored, typename Sum>
EFCN_AVX2 void with_avx2(const FewRows<Stored, Sum>& job, int64_t i, Sum* sums, Stored* buffer) {
  any_row<32, Batch>(job, i, sums, buffer);
}

template <int Batch, typename Stored, typename Sum>
EFCN_AVX512 void with_avx512(const FewRows<Stored, Sum>& job, int64_t i, Sum* sums, Stored* buffer) {
  any_row<64, Batch>(job, i, sums, buffer);
}
#endif

template <int Batch, typename Stored, typename Sum>
auto best() {
#if defined(__x86_64__)
  return vector_bytes() == 64 ? &with_avx512<Batch, Stored, Sum> : &with_avx2<Batch, Stored, Sum>;  // see are_few()
#else
  return &anywhere<Batch, Stored, Sum>;
#endif
}

}  // namespace

template <typename Stored, typename Sum>
void FewRows<Stored, Sum>::block_row(int64_t i, Sum* sums, Stored* block) const {
  if (walk.starts[i] == walk.starts[i + 1]) {
    for (int64_t n = 0; n < batch; ++n) std::fill_n(sums + n * walk.out_side, walk.out_extent(i), Sum(0));
    return;
  }
  static const auto of_narrow = best<0, Stored, Sum>(), one = best<1, Stored, Sum>(), two = best<2, Stored, Sum>(),
                    four = best<4, Stored, Sum>(), eight = best<8, Stored, Sum>();
  const int64_t side = walk.stored_out_by_in ? walk.in_side : walk.out_side;
  const bool fills_none = side * static_cast<int64_t>(sizeof(Sum)) < vector_bytes() && (side & (side - 1)) != 0;
  (fills_none ? of_narrow : batch == 1 ? one : batch == 2 ? two : batch == 4 ? four : eight)(*this, i, sums, block);
}

template struct FewRows<float, float>;
template struct FewRows<double, double>;
template struct FewRows<c10::BFloat16, float>;
template struct FewRows<c10::Half, float>;

}  // namespace efcn_sparse::cpu
