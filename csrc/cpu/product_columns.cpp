// Tiles whose sums stay in registers while the weights of several blocks pass.
#include "product_columns.h"

#include <algorithm>
#include <array>
#include <utility>

#include "operands.h"
#include "vectors.h"

namespace efcn_sparse::cpu {
namespace {

constexpr int most_vectors(int bytes) { return bytes == 64 ? 3 : 2; }
// Registers hold the sums, a row of X^T and a weight: 24 sums of 32 registers, 12 of 16.
constexpr int most_sums(int bytes) { return bytes == 64 ? 24 : 12; }

template <typename T>
struct ColumnTile {
  const Piece<T>* pieces;  // those that are upcoming follow
  int64_t count, upcoming, ld, row;
  T* sums;
  bool add;
};

// Sums of Rows features, Vectors registers wide.
template <int Bytes, int Rows, int Vectors, bool AlongK, typename T>
EFCN_INLINE void tile(const ColumnTile<T>& job) {
  using V = typename Vector<T, Bytes>::type;
  constexpr int64_t width = Vector<T, Bytes>::width, lanes = Vectors * width;
  V total[Rows][Vectors];
#pragma GCC unroll 24
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) total[r][v] = V{};  // not the sums so far: long chains of sums round badly
  for (int64_t s = 0; s < job.count; ++s) {
    const T *w = job.pieces[s].weights + (AlongK ? job.row * job.ld : job.row), *x = job.pieces[s].columns;
    // as large a part of a block that is upcoming, bit by bit: many requests at once would keep the columns waiting
    const Piece<T>& later = job.pieces[s < job.upcoming ? job.count + s : s];
    const T* soon = later.weights + job.row * later.k;
    for (int64_t k = 0; k < job.pieces[s].k; ++k, x += lanes, w += AlongK ? 1 : job.ld, soon += Rows) {
      if constexpr (Bytes == 64) __builtin_prefetch(soon);
      V right[Vectors];
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) right[v] = *reinterpret_cast<const V*>(x + v * width);
#pragma GCC unroll 24
      for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) total[r][v] += w[AlongK ? r * job.ld : r] * right[v];
    }
  }
#pragma GCC unroll 24
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      V& sum = *reinterpret_cast<V*>(job.sums + r * lanes + v * width);
      sum = job.add ? sum + total[r][v] : total[r][v];
    }
}

template <typename T>
using Tile = void (*)(const ColumnTile<T>&);

#define EFCN_TILE(name, target, bytes)                                                    \
  template <int Rows, int Vectors, bool AlongK, typename T>                               \
  target void name(const ColumnTile<T>& job) {                                            \
    tile<bytes, Rows, Vectors, AlongK>(job);                                              \
  }                                                                                       \
  template <int Vectors, bool AlongK, typename T, int... Rows>                            \
  constexpr auto name##_heights(std::integer_sequence<int, Rows...>) {                    \
    return std::array<Tile<T>, most_sums(bytes)>{&name<Rows + 1, Vectors, AlongK, T>...}; \
  }                                                                                       \
  template <bool AlongK, typename T, int... Vectors>                                      \
  constexpr auto name##_table(std::integer_sequence<int, Vectors...>) {                   \
    return std::array<std::array<Tile<T>, most_sums(bytes)>, sizeof...(Vectors)>{         \
        name##_heights<Vectors + 1, AlongK, T>(                                           \
            std::make_integer_sequence<int, most_sums(bytes) / (Vectors + 1)>{})...};     \
  }

EFCN_TILE(tile_anywhere, , 16)
#if defined(__x86_64__)
EFCN_TILE(tile_avx2, EFCN_AVX2, 32)
EFCN_TILE(tile_avx512, EFCN_AVX512, 64)
#endif

// A tile's weights lie in runs too short for the processor to see coming. Always inline: GCC drops calls that only prefetch.
template <typename T>
EFCN_INLINE void prefetch_weights(const ColumnProduct<T>& product, const Piece<T>* pieces, int64_t count, int64_t row,
                                  int64_t height, int64_t rows_before) {
  constexpr int64_t line = 64 / sizeof(T);
  if (product.along_k) {
    for (int64_t s = 0; s < count; ++s)
      for (int64_t r = row; r < row + height; ++r)
        for (int64_t k = 0; k < pieces[s].k; k += line) __builtin_prefetch(pieces[s].weights + r * product.ld + k);
  } else if (rows_before == 0 || (row + height - 1) / line > (rows_before - 1) / line) {
    for (int64_t s = 0; s < count; ++s)
      for (int64_t k = 0; k < pieces[s].k; ++k)
        __builtin_prefetch(pieces[s].weights + k * product.ld + row + height - 1);
  }
}

// All rows in tiles that are as equal as can be: in a small last one sums would wait for each other.
template <typename Table, typename T>
void in_tiles(const Table& table, const ColumnProduct<T>& product, int64_t rows, int64_t vectors,
              const Piece<T>* pieces, int64_t count, int64_t upcoming, T* sums, bool add) {
  const int64_t most = static_cast<int64_t>(table[0].size()) / vectors, number = (rows + most - 1) / most;
  for (int64_t t = 0, row = 0; t < number; ++t) {
    const int64_t height = (rows - row + number - t - 1) / (number - t), after = row + height;
    if (vector_bytes() != 64) {  // there the tiles do it
      if (after < rows)
        prefetch_weights(product, pieces, count, after, std::min(most, rows - after), after);
      else
        prefetch_weights(product, pieces + count, upcoming, 0, std::min(most, rows), 0);
    }
    table[vectors - 1][height - 1]({pieces, count, upcoming, product.ld, row, sums + row * product.lanes, add});
    row = after;
  }
}

}  // namespace

int64_t columns_side() { return vector_bytes() == 64 ? 48 : 16; }

template <typename T>
int64_t ColumnProduct<T>::vector() {
  return vector_bytes() / static_cast<int64_t>(sizeof(T));
}

template <typename T>
int64_t ColumnProduct<T>::most_lanes() {
  return vector() * most_vectors(vector_bytes());
}

template <typename T>
void ColumnProduct<T>::run(int64_t rows, const Piece<T>* pieces, int64_t count, int64_t upcoming, T* sums,
                           bool add) const {
#define EFCN_RUN(name, bytes)                                                                                       \
  {                                                                                                                 \
    static constexpr auto kAlong = name##_table<true, T>(std::make_integer_sequence<int, most_vectors(bytes)>{});   \
    static constexpr auto kAcross = name##_table<false, T>(std::make_integer_sequence<int, most_vectors(bytes)>{}); \
    return in_tiles(along_k ? kAlong : kAcross, *this, rows, lanes / vector(), pieces, count, upcoming, sums, add); \
  }
#if defined(__x86_64__)
  if (vector_bytes() == 64) EFCN_RUN(tile_avx512, 64)
  if (vector_bytes() == 32) EFCN_RUN(tile_avx2, 32)
#endif
  EFCN_RUN(tile_anywhere, 16)
}

#define EFCN_WIDEN(name, target, bytes)                                       \
  template <typename Stored>                                                  \
  target void name(const Stored* from, int64_t count, float* to) {            \
    int64_t e = 0;                                                            \
    for (; e + bytes / 4 <= count; e += bytes / 4) {                          \
      typename Vector<float, bytes>::type some;                               \
      load<float, bytes>(from + e, some);                                     \
      *reinterpret_cast<typename Vector<float, bytes>::type*>(to + e) = some; \
    }                                                                         \
    for (; e < count; ++e) to[e] = static_cast<float>(from[e]);               \
  }

EFCN_WIDEN(widen_anywhere, , 16)
#if defined(__x86_64__)
EFCN_WIDEN(widen_avx2, EFCN_AVX2, 32)
#endif

template <typename Stored>
void widen_here(const Stored* from, int64_t count, float* to) {
#if defined(__x86_64__)
  if (vector_bytes() >= 32) return widen_avx2(from, count, to);
#endif
  widen_anywhere(from, count, to);
}

void widen(const c10::BFloat16* from, int64_t count, float* to) { widen_here(from, count, to); }
void widen(const c10::Half* from, int64_t count, float* to) { widen_here(from, count, to); }

template struct ColumnProduct<float>;
template struct ColumnProduct<double>;

}  // namespace efcn_sparse::cpu
