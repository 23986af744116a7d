// C [M, N] (+)= sum over segments of A_s [M, K_s] B_s [K_s, N], in bfloat16, with AMX: its 8 registers are tiles of up to 16
// rows of 64 bytes. Four of them hold sums from the first segment to the last, so that none waits for itself.
#include "product.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>
#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "vectors.h"

namespace efcn_sparse::cpu {

bool has_amx() {
#if defined(__x86_64__)
  static const bool answer = [] {
    const char* setting = std::getenv("EFCN_AMX");
    const bool is_off = setting != nullptr && std::strcmp(setting, "off") == 0;
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    constexpr unsigned kTilesAndBf16 = 1u << 24 | 1u << 22;
    const bool has_both = __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (~edx & kTilesAndBf16) == 0;
    return !is_off && has_both && vector_bytes() == 64;
  }();
  return answer;
#else
  return false;
#endif
}

#if defined(__x86_64__) && __has_include(<amxtileintrin.h>)  // of compilers whose assemblers know the instructions
namespace {

using Operand = c10::BFloat16;

constexpr int64_t kRows = kStripColumns;  // of a tile: as many as columns in fp32
constexpr int64_t kDepth = 32;            // of K, in one multiplication of tiles

// Not intrinsics: those of GCC take the name of a register, not a number from a template.
template <int Tile>
EFCN_INLINE void load_tile(const void* from, int64_t bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(bytes), "i"(Tile) : "memory");
}
template <int Tile>
EFCN_INLINE void store_tile(void* to, int64_t bytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(bytes), "i"(Tile) : "memory");
}
template <int Tile>
EFCN_INLINE void clear_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(Tile));
}
template <int Sums, int Left, int Right>
EFCN_INLINE void multiply_tiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sums), "i"(Left), "i"(Right));
}

// What LDTILECFG takes. It costs as much as multiplying a few tiles, so a thread does it for other sizes only.
struct alignas(64) Config {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
struct Sizes {
  int64_t m = 0, n = 0, depth = 0;
  bool operator==(const Sizes&) const = default;
};
thread_local Sizes configured;

struct Operands {
  const Segment<Operand>* segments;
  int64_t count, lda, ldb, ldc;
  const Operand* panel;
  float* c;
};

template <int... I, typename Body>
EFCN_INLINE void each(std::integer_sequence<int, I...>, const Body& body) {
  (body(std::integral_constant<int, I>()), ...);
}
template <int Count, typename Body>
EFCN_INLINE void each(const Body& body) {
  each(std::make_integer_sequence<int, Count>(), body);
}

// Down x Across tiles of C.
template <int Down, int Across>
struct Group {
  static constexpr int kLefts = Across == 1 ? 3 : Down == 1 ? 1 : 2, kRights = 4 - kLefts;
  static constexpr int sums(int i, int j) { return i * Across + j; }
  static constexpr int left(int i) { return 4 + i % kLefts; }
  static constexpr int right(int j) { return 4 + kLefts + j % kRights; }

  static void configure(const Sizes& sizes) {
    Config config;
    const auto set = [&](int tile, int64_t rows, int64_t bytes) {
      config.rows[tile] = static_cast<uint8_t>(rows);
      config.row_bytes[tile] = static_cast<uint16_t>(bytes);
    };
    const auto part = [](int64_t size, int i) { return std::min(kRows, size - i * kRows); };
    for (int i = Down; i-- > 0;) {
      set(left(i), part(sizes.m, i), sizes.depth * 2);
      for (int j = Across; j-- > 0;) {
        set(right(j), sizes.depth / 2, part(sizes.n, j) * 4);
        set(sums(i, j), part(sizes.m, i), part(sizes.n, j) * 4);
      }
    }
    asm volatile("ldtilecfg %0" ::"m"(config));
  }

  // Of each segment what divides by kDepth, or with another depth what is left of those of which so much is.
  static void run(const Operands& in, int64_t row, int64_t column, const Sizes& sizes, bool add) {
    const int64_t depth = sizes.depth, last = sizes.n - (Across - 1) * kRows;  // last: columns of the last strip
    const int64_t bytes_a = in.lda * 2, bytes_c = in.ldc * 4;
    const Operand* strips = in.panel + column / kRows * in.ldb;
    float* c = in.c + row * in.ldc + column;
    each<Down>([&](auto i) {
      each<Across>([&](auto j) {
        constexpr int kTile = sums(i, j);
        if (add)
          load_tile<kTile>(c + i * kRows * in.ldc + j * kRows, bytes_c);
        else
          clear_tile<kTile>();
      });
    });
    for (int64_t s = 0; s < in.count; ++s) {
      const Segment<Operand>& segment = in.segments[s];
      const int64_t whole = segment.k / kDepth * kDepth, end = depth == kDepth ? whole : segment.k;
      int64_t k = depth == kDepth ? 0 : whole;
      if (depth < kDepth && end - k != depth) continue;
      for (; k < end; k += depth) {
        const Operand* a = segment.a + row * in.lda + k;
        const auto load_right = [&](auto j) __attribute__((always_inline)) {
          const int64_t columns = j + 1 < Across ? kRows : last;
          load_tile<right(j)>(strips + j * in.ldb + (segment.panel_row + k) * columns, columns * 4);
        };
        each<Across>([&](auto j) {
          if constexpr (j < kRights) load_right(j);
        });
        each<Down>([&](auto i) {
          load_tile<left(i)>(a + i * kRows * in.lda, bytes_a);
          each<Across>([&](auto j) {
            if constexpr (j >= kRights) load_right(j);
            multiply_tiles<sums(i, j), left(i), right(j)>();
          });
        });
      }
    }
    each<Down>([&](auto i) {
      each<Across>([&](auto j) { store_tile<sums(i, j)>(c + i * kRows * in.ldc + j * kRows, bytes_c); });
    });
  }
};

// Rows and columns of C from some on, as many as `sizes` has.
void run_group(const Operands& in, int64_t row, int64_t column, const Sizes& sizes, bool add) {
  const auto run = [&](auto group) {
    if (!(sizes == configured)) group.configure(sizes);
    configured = sizes;
    group.run(in, row, column, sizes, add);
  };
  const int64_t down = (sizes.m + kRows - 1) / kRows;
  if (sizes.n > kRows) return down == 2 ? run(Group<2, 2>()) : run(Group<1, 2>());
  if (down == 4) return run(Group<4, 1>());
  if (down == 3) return run(Group<3, 1>());
  down == 2 ? run(Group<2, 1>()) : run(Group<1, 1>());
}

void sum_in_tiles(int64_t m, int64_t n, const Segment<Operand>* segments, int64_t count, int64_t lda,
                  const Operand* panel, int64_t ldb, float* c, int64_t ldc, bool add) {
  const Operands in{segments, count, lda, ldb, ldc, panel, c};
  uint32_t depths = 0;  // bit d: some segment has a part of depth 2 d
  for (int64_t s = 0; s < count; ++s)
    depths |= (segments[s].k >= kDepth ? 1u << kDepth / 2 : 0u) | 1u << segments[s].k % kDepth / 2;
  for (int64_t depth = kDepth; depth > 0; depth -= 2) {
    if ((depths >> depth / 2 & 1) == 0) continue;
    for (int64_t column = 0; column < n; column += 2 * kRows) {
      const int64_t columns = std::min(n - column, 2 * kRows);
      for (int64_t row = 0; row < m;) {
        const int64_t left = m - row;  // four tiles share three registers for A, so all must have as many rows
        const int64_t most = columns > kRows ? 2 * kRows : left >= 4 * kRows ? 4 * kRows : 3 * kRows;
        run_group(in, row, column, {std::min(left, most), columns, depth}, add);
        row += most;
      }
    }
    add = true;
  }
}

}  // namespace

SumSegments amx_kernel() {
  constexpr int kAskForState = 0x1023, kTileData = 18;  // Linux lends the registers to a process that asks
  static const bool is_lent = has_amx() && syscall(SYS_arch_prctl, kAskForState, kTileData) == 0;
  return is_lent ? &sum_in_tiles : nullptr;
}

void release_amx() {
  configured = Sizes();
  asm volatile("tilerelease");
}

#else
SumSegments amx_kernel() { return nullptr; }
void release_amx() {}
#endif

}  // namespace efcn_sparse::cpu
