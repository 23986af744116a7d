// Tiles of the three products whose sums stay in registers.
#include "product_panels.h"

#include <algorithm>
#include <array>
#include <utility>

#include "vectors.h"

namespace efcn_sparse::cpu {
namespace {

// Registers hold the sums, a row of one operand and a number of the other: 24 sums of 32 registers, 12 of 16.
constexpr int most_sums(int bytes) { return bytes == 64 ? 24 : 12; }
constexpr int most_vectors(int bytes) { return bytes == 64 ? 4 : 2; }
constexpr int kSpreadRows = 12;  // pointers to more rows would not fit the registers
constexpr int spread_rows(int bytes, int vectors) { return std::min(kSpreadRows, most_sums(bytes) / vectors); }
// Rows of the batch that pass all of a panel before the next ones come: with AVX2, in L1 caches of 32 KiB.
constexpr int64_t rows_together(int bytes, int64_t rows) { return bytes == 32 ? 24 : rows; }
constexpr int most_dots(int bytes) { return bytes == 64 ? 4 : 2; }  // rows of the batch in a tile of dot products
constexpr int kDotColumns = 6;

template <typename T>
constexpr int64_t line = 64 / sizeof(T);

// How often a tile of so many rows fetches what is upcoming, for `k` features of a piece.
template <typename T>
constexpr int64_t slots(int64_t k, int64_t rows) {
  return k / line<T> * std::max<int64_t>(0, line<T> - rows);
}

template <typename T>
struct SpreadTile {
  const PanelPiece<T>* pieces;
  int64_t count, ldp, begin, row, column;  // begin: of the column in a panel
  T* y;
  int64_t ldy;
  const T* bias;
  bool add;
  int64_t tile, stride;  // of what is upcoming: which part this tile fetches, and how much at a time
};

template <int Bytes, int Vectors, int Rows, typename T>
EFCN_INLINE void spread_tile(const SpreadTile<T>& job) {
  using V = typename Vector<T, Bytes>::type;
  constexpr int64_t width = Vector<T, Bytes>::width;
  V total[Rows][Vectors] = {};
  const int64_t ldx = job.pieces[0].ldx;
  for (int64_t s = 0; s < job.count; ++s) {
    const T *x = job.pieces[s].x + job.row * ldx, *panel = job.pieces[s].panel + job.begin;
    const auto multiply = [&]() __attribute__((always_inline)) {
      V right[Vectors];
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) right[v] = *reinterpret_cast<const V*>(panel + v * width);
#pragma GCC unroll 24
      for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) total[r][v] += x[r * ldx] * right[v];
      ++x, panel += job.ldp;
    };
    // rows lie far apart: those of the next piece, or of the first one in the next tile, are on their way
    const bool last = s + 1 == job.count;
    const PanelPiece<T>& next = job.pieces[last ? 0 : s + 1];
    const T* soon = next.x + (job.row + (last ? Rows : 0)) * ldx;
    int64_t k = 0;
    if constexpr (Bytes == 64) {  // line by line: many requests at once would keep the panel waiting
      for (int r = 0; last && r < Rows; ++r)
        for (int v = 0; v < Vectors; ++v)
          __builtin_prefetch(job.y + (job.row + r) * job.ldy + job.column + v * width, 1);
      const int64_t part = job.tile * job.stride * slots<T>(job.pieces[s].k, Rows);
      const T* upcoming = job.stride > 0 ? job.pieces[s].upcoming + part : panel;
      for (; k + line<T> <= job.pieces[s].k; k += line<T>) {
        for (int r = 0; r < Rows; ++r) {
          __builtin_prefetch(soon + r * ldx + std::min(k, next.k - 1));
          if (r < line<T>) multiply();
        }
        for (int r = Rows; r < line<T>; ++r, upcoming += job.stride) {
          __builtin_prefetch(upcoming);
          multiply();
        }
      }
    }
    if (k < job.pieces[s].k) {
      const int64_t some = Bytes == 32 ? 1 : next.k - k;  // processors with AVX2 alone find the lines after the first
#pragma GCC unroll 24
      for (int r = 0; r < Rows; ++r)
        for (int64_t f = 0; f < some; f += line<T>) __builtin_prefetch(soon + r * ldx + k + f);
    }
    for (; k < job.pieces[s].k; ++k) multiply();
  }
#pragma GCC unroll 24
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      V& y = *reinterpret_cast<V*>(job.y + (job.row + r) * job.ldy + job.column + v * width);
      if (job.add) total[r][v] += y;
      if (job.bias != nullptr) total[r][v] += *reinterpret_cast<const V*>(job.bias + job.column + v * width);
      y = total[r][v];
    }
}

// Each of a vector's lanes becomes the sum of one of as many vectors: pairs of vectors become one with half the partial sums
// of each, again and again.
template <typename V, int Half, int... Lane>
EFCN_INLINE void add_halves(V& first, const V& second, std::integer_sequence<int, Lane...>) {
#if defined(__clang__)
  first = __builtin_shufflevector(first, second, (Lane / Half * 2 * Half + Lane % Half)...) +
          __builtin_shufflevector(first, second, (Lane / Half * 2 * Half + Lane % Half + Half)...);
#else
  using Index = std::conditional_t<sizeof(first[0]) == 4, int32_t, int64_t>;
  typedef Index Lanes __attribute__((vector_size(sizeof(V))));
  first = __builtin_shuffle(first, second, Lanes{(Lane / Half * 2 * Half + Lane % Half)...}) +
          __builtin_shuffle(first, second, Lanes{(Lane / Half * 2 * Half + Lane % Half + Half)...});
#endif
}

template <typename V, int Width, int Half>
EFCN_INLINE void sum_lanes(V* vectors) {
#pragma GCC unroll 16
  for (int i = 0; i < Half; ++i) {
    vectors[i] = vectors[2 * i];
    add_halves<V, Half>(vectors[i], vectors[2 * i + 1], std::make_integer_sequence<int, Width>{});
  }
  if constexpr (Half > 1) sum_lanes<V, Width, Half / 2>(vectors);
}

template <typename T>
struct DotsTile {
  const PanelPiece<T>* pieces;
  int64_t count, ldp, row, column;
  T* y;
  int64_t ldy;
  bool add;
};

template <int Bytes, int Columns, int Rows, typename T>
EFCN_INLINE void dots_tile(const DotsTile<T>& job) {
  using V = typename Vector<T, Bytes>::type;
  constexpr int width = Vector<T, Bytes>::width, all = Rows * Columns, groups = (all + width - 1) / width;
  V total[groups * width] = {};
  for (int64_t s = 0; s < job.count; ++s) {
    const int64_t ldx = job.pieces[s].ldx;
    const T *x = job.pieces[s].x + job.row * ldx, *panel = job.pieces[s].panel + job.column * job.ldp;
    for (int64_t k = 0; k < job.pieces[s].k; k += width, x += width, panel += width) {
      V left[Rows];
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) left[r] = *reinterpret_cast<const V*>(x + r * ldx);
#pragma GCC unroll 8
      for (int c = 0; c < Columns; ++c) {
        const V right = *reinterpret_cast<const V*>(panel + c * job.ldp);
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) total[r * Columns + c] += left[r] * right;
      }
    }
  }
  T sums[groups * width];
#pragma GCC unroll 16
  for (int g = 0; g < groups; ++g) {
    sum_lanes<V, width, width / 2>(total + g * width);
    *reinterpret_cast<V*>(sums + g * width) = total[g * width];
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
    T* y = job.y + (job.row + r) * job.ldy + job.column;
#pragma GCC unroll 8
    for (int c = 0; c < Columns; ++c) y[c] = job.add ? y[c] + sums[r * Columns + c] : sums[r * Columns + c];
  }
}

template <typename T>
struct OuterTile {
  const T *x, *left;
  int64_t rows, ldx, ldp;
  T* panel;
  bool add;
  const T* upcoming;
  int64_t ldu;
};

template <int Bytes, int Vectors, int Columns, typename T>
EFCN_INLINE void outer_tile(const OuterTile<T>& job) {
  using V = typename Vector<T, Bytes>::type;
  constexpr int64_t width = Vector<T, Bytes>::width, kAhead = 6;
  V total[Columns][Vectors] = {};
  const T *x = job.x, *left = job.left, *upcoming = job.upcoming;
  for (int64_t m = 0; m < job.rows; ++m, x += job.ldx, left += job.ldp, upcoming += job.ldu) {
    V right[Vectors];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) right[v] = *reinterpret_cast<const V*>(left + v * width);
    __builtin_prefetch(x + kAhead * job.ldx);  // rows lie far apart
    __builtin_prefetch(upcoming);
#pragma GCC unroll 24
    for (int c = 0; c < Columns; ++c)
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) total[c][v] += x[c] * right[v];
  }
#pragma GCC unroll 24
  for (int c = 0; c < Columns; ++c)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      V& sum = *reinterpret_cast<V*>(job.panel + c * job.ldp + v * width);
      sum = job.add ? sum + total[c][v] : total[c][v];
    }
}

// Tables of a kind of tile [vectors or columns][rows or columns].
#define EFCN_TABLE(kind, Kind, name, target, bytes, across, most)                                           \
  template <int Across, int Along, typename T>                                                              \
  target void kind##_##name(const Kind<T>& job) {                                                           \
    kind##_tile<bytes, Across, Along>(job);                                                                 \
  }                                                                                                         \
  template <int Across, typename T, int... Along>                                                           \
  constexpr auto kind##_##name##_line(std::integer_sequence<int, Along...>) {                               \
    return std::array<void (*)(const Kind<T>&), most_sums(bytes)>{&kind##_##name<Across, Along + 1, T>...}; \
  }                                                                                                         \
  template <typename T, int... Across>                                                                      \
  constexpr auto kind##_##name##_table(std::integer_sequence<int, Across...>) {                             \
    return std::array<std::array<void (*)(const Kind<T>&), most_sums(bytes)>, sizeof...(Across)>{           \
        kind##_##name##_line<Across + 1, T>(std::make_integer_sequence<int, most>{})...};                   \
  }                                                                                                         \
  template <typename T>                                                                                     \
  constexpr auto kind##_on_##name = kind##_##name##_table<T>(std::make_integer_sequence<int, across>{});

#define EFCN_TABLES(name, target, bytes)                                                                   \
  EFCN_TABLE(spread, SpreadTile, name, target, bytes, most_vectors(bytes), spread_rows(bytes, Across + 1)) \
  EFCN_TABLE(outer, OuterTile, name, target, bytes, most_vectors(bytes), most_sums(bytes) / (Across + 1))  \
  EFCN_TABLE(dots, DotsTile, name, target, bytes, kDotColumns, most_dots(bytes))

EFCN_TABLES(anywhere, , 16)
#if defined(__x86_64__)
EFCN_TABLES(avx2, EFCN_AVX2, 32)
EFCN_TABLES(avx512, EFCN_AVX512, 64)
#endif

// Calls tile(begin, size) for parts of [0, total) that are as equal as can be, none above `most`.
template <typename Tile>
EFCN_INLINE void in_parts(int64_t total, int64_t most, Tile&& tile) {
  const int64_t number = (total + most - 1) / most, size = total / number, larger = total % number;
  for (int64_t t = 0, begin = 0; t < number; begin += size + (t++ < larger)) tile(begin, size + (t < larger));
}

// Calls run(table, bytes) with this processor's table.
#if defined(__x86_64__)
#define EFCN_HERE(kind, run)                                       \
  {                                                                \
    if (vector_bytes() == 64) return run(kind##_on_avx512<T>, 64); \
    if (vector_bytes() == 32) return run(kind##_on_avx2<T>, 32);   \
    return run(kind##_on_anywhere<T>, 16);                         \
  }
#else
#define EFCN_HERE(kind, run) return run(kind##_on_anywhere<T>, 16);
#endif

}  // namespace

template <typename T>
int64_t PanelProduct<T>::vector() {
  return vector_bytes() / static_cast<int64_t>(sizeof(T));
}

template <typename T>
int64_t PanelProduct<T>::strip() {
  return most_vectors(vector_bytes()) * vector();
}

template <typename T>
void PanelProduct<T>::spread(int64_t rows, int64_t n, const PanelPiece<T>* pieces, int64_t count, T* y, int64_t ldy,
                             const T* bias, bool add) const {
  const auto run = [&](const auto& table, int bytes) {
    const int64_t width = vector(), across = (n / width + most_vectors(bytes) - 1) / most_vectors(bytes);
    const int64_t most_rows = spread_rows(bytes, (n / width + across - 1) / across);
    const int64_t fetches = across * ((rows + most_rows - 1) / most_rows) * slots<T>(pieces[0].k, most_rows);
    const bool fetch = pieces[0].upcoming != nullptr && fetches > 0;
    const int64_t stride = fetch ? std::min<int64_t>(line<T>, (n * pieces[0].k + fetches - 1) / fetches) : 0;
    int64_t tile = 0;
    for (int64_t first = 0, some; first < rows; first += some) {
      some = std::min(rows - first, rows_together(bytes, rows));
      in_parts(n / width, most_vectors(bytes), [&](int64_t vector, int64_t vectors) {
        const int64_t column = vector * width, begin = column / ldp * ldp * depth + column % ldp;
        in_parts(some, spread_rows(bytes, vectors), [&](int64_t row, int64_t height) {
          table[vectors - 1][height - 1](
              {pieces, count, ldp, begin, first + row, column, y, ldy, bias, add, tile++, stride});
        });
      });
    }
  };
  EFCN_HERE(spread, run)
}

template <typename T>
void PanelProduct<T>::dots(int64_t rows, int64_t n, const PanelPiece<T>* pieces, int64_t count, T* y, int64_t ldy,
                           bool add) const {
  const auto run = [&](const auto& table, int bytes) {
    in_parts(n, kDotColumns, [&](int64_t column, int64_t columns) {
      in_parts(rows, most_dots(bytes), [&](int64_t row, int64_t height) {
        table[columns - 1][height - 1]({pieces, count, ldp, row, column, y, ldy, add});
      });
    });
  };
  EFCN_HERE(dots, run)
}

template <typename T>
void PanelProduct<T>::outer(int64_t rows, int64_t n, const T* x, int64_t ldx, const T* left, T* panel, bool add,
                            const T* upcoming, int64_t ldu) const {
  const auto run = [&](const auto& table, int bytes) {
    const int64_t width = vector();
    in_parts(ldp / width, most_vectors(bytes), [&](int64_t vector, int64_t vectors) {
      in_parts(n, most_sums(bytes) / vectors, [&](int64_t column, int64_t columns) {
        table[vectors - 1][columns - 1]({x + column, left + vector * width, rows, ldx, ldp,
                                         panel + column * ldp + vector * width, add, upcoming, ldu});
      });
    });
  };
  EFCN_HERE(outer, run)
}

template struct PanelProduct<float>;
template struct PanelProduct<double>;

}  // namespace efcn_sparse::cpu
