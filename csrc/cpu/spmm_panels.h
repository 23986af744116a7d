// SpMM that reads x, and writes y, as they lie in memory: the blocks of a block row are copied as panels, unless they are
// stored so, and their sums stay in registers from the first block to the last.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "buffer.h"
#include "memory.h"
#include "operands.h"
#include "panels.h"
#include "product_panels.h"
#include "result.h"
#include "threads.h"
#include "vectors.h"

namespace efcn_sparse::cpu {

constexpr int64_t kPanelRows = 64;    // of the batch: what repays the copying
constexpr int64_t kPanelHeight = 48;  // of blocks
constexpr int64_t kWidePanel = 128;  // sides of blocks up to which tiles of our own are as fast as brgemm's, and faster
constexpr int64_t kPanelUses = 64;   // multiplications of a number of x
constexpr int64_t kPanelGroup = 256;  // rows of the batch for which a block is copied once
constexpr int64_t kQuickGroup = 128;  // the same with AVX-512, where rows of x that stay in the L2 cache count for more
constexpr int64_t kPanelChain = 512;  // products in a chain of sums; longer ones round badly
// Rows of x a multiple of kCrowdedBytes apart are copied with a gap between them where blocks have few strips, which each read
// x anew, and a number of x has uses enough.
constexpr int64_t kCopyGap = 48, kCopyStrips = 2, kCopyUses = 128;

template <typename T>
class ByPanels {
 public:
  ByPanels(const at::Tensor& x, const T* values, const Walk& walk, const Masks& masks, const Result<T, T>& result)
      : walk_(walk), masks_(masks), values_(values), x_(x.const_data_ptr<T>()), batch_(x.size(0)), ldx_(x.stride(0)),
        result_(result), spreads_(walk.in_side < walk.out_side || are_wide(walk)),
        along_(spreads_ ? walk.out_side : walk.in_side), across_(spreads_ ? walk.in_side : walk.out_side),
        transposes_(walk.stored_out_by_in == spreads_), copies_(transposes_ || (spreads_ && has_small_cache())),
        strip_(spreads_ && copies_ && along_ % product_.strip() == 0 ? product_.strip() : along_),
        fetches_(spreads_ && is_quick() && walk.in_side * sizeof(T) >= 64), product_{strip_, across_} {
    const bool is_crowded = ldx_ * sizeof(T) % kCrowdedBytes == 0 && along_ <= kCopyStrips * strip_;
    const bool repays = walk.starts[walk.rows] * masks.elements >= kCopyUses * walk.in_features;
    const bool is_narrow = walk.in_side < kDirectRun && !worth_gathering(walk);  // as planning/kernel_rules.py expects
    if (has_small_cache() && are_wide(walk) && is_narrow && is_crowded && repays) set_rows_apart();
  }

  // Whether this is faster than columns of the batch, and than a product for each block, which loads and stores its sums.
  // Dot products end in sums across registers, so they pay where columns would be transposed for few multiplications, and
  // where what neighboring block rows read stays in the cache.
  static bool is_faster(const Walk& walk, int64_t batch) {
    if (batch < kPanelRows) return false;
    if (are_wide(walk)) return true;
    if (walk.in_side < walk.out_side) return walk.out_side >= kPanelHeight && fit_panels(walk.in_side, walk.out_side);
    if (!fit_panels(walk.out_side, walk.in_side) || walk.in_features * sizeof(T) % kCrowdedBytes == 0) return false;
    int64_t span = 0;
    for (int64_t i = 0; i < walk.rows; ++i)
      if (walk.starts[i] < walk.starts[i + 1])
        span += walk.neighbors[walk.starts[i + 1] - 1] - walk.neighbors[walk.starts[i]] + 1;
    return 4 * span * walk.in_side <= walk.rows * walk.in_features &&
           walk.starts[walk.rows] * walk.in_side * walk.out_side <= kPanelUses * walk.in_features;
  }

  void run() const {
    const int64_t threads = threads_for(batch_ * walk_.starts[walk_.rows] * masks_.elements);
    int64_t together = std::max<int64_t>(1, kTogether / walk_.out_side);
    const int64_t most_rows = is_quick() ? kQuickGroup : kPanelGroup;
    int64_t groups = (batch_ + most_rows - 1) / most_rows;
    while (batch_ / groups >= 2 * kPanelRows && walk_.rows * groups < 4 * threads) groups *= 2;
    while (together > 1 && (walk_.rows + together - 1) / together * groups < 4 * threads) together /= 2;
    const int64_t shares = is_quick() ? groups : 1, step = shares < threads ? threads : 1;
    const std::vector<int64_t> firsts = walk_.strips(together, shares < threads);
    const int64_t strips = firsts.size();
    share_tasks(
        strips * groups,
        [&](auto&& next) {
          Workspace space;
          for (int64_t task = next(); task >= 0; task = next()) {
            const int64_t group = task / strips, i = firsts[task % strips];
            space.next = firsts[(task + step) % strips];
            block_rows(i, std::min(walk_.rows, i + together), group * batch_ / groups, (group + 1) * batch_ / groups,
                       space);
          }
        },
        threads, shares);
  }

 private:
  // Processors with AVX2 alone: 32 KiB in 8 ways for a core, 256 to 512 KiB behind it.
  static bool has_small_cache() { return vector_bytes() == 32; }
  // With AVX-512, multiplying takes so little time that what is read from far away decides.
  static bool is_quick() { return vector_bytes() == 64; }

  // A copy whose rows do not fall into the same few cache sets.
  void set_rows_apart() {
    const int64_t ld = round_up(walk_.in_features, kCrowdedBytes / sizeof(T)) + kCopyGap;
    copy_ = empty({batch_, ld}, at::TensorOptions().dtype(c10::CppTypeToScalarType<T>::value));
    T* to = copy_.template mutable_data_ptr<T>();
    at::parallel_for(0, batch_, (1 << 15) / ld + 1, [&](int64_t begin, int64_t end) {
      copy_rows(x_, ldx_, begin, end, 0, walk_.in_features, ld, to + begin * ld);
    });
    x_ = to;
    ldx_ = ld;
  }

  // Two vectors and more: with one, each number of x that is loaded is used once, and columns of the batch are faster.
  static bool are_wide(const Walk& walk) {
    return walk.out_side % 16 == 0 && walk.out_side >= 2 * PanelProduct<T>::vector() && walk.out_side <= kWidePanel &&
           walk.in_side >= kGatherSide && walk.in_side <= kPanelChain;
  }

  struct Workspace {
    Buffer<T> block, last, sums, bias;
    Buffer<T> panels;  // [most blocks][across_, along_], and room for what a transposition writes besides
    std::vector<PanelPiece<T>> pieces;
    int64_t next;  // block row, after this task: likely, and only to be fetched
  };

  // Block rows [begin, end) of y side by side, for rows [first, last) of the batch.
  void block_rows(int64_t begin, int64_t end, int64_t first, int64_t last, Workspace& space) const {
    const int64_t side = walk_.out_side, out = begin * side, rows = last - first, padded = (end - begin) * side;
    const int64_t width = std::min(padded, walk_.out_features - out);
    bool direct = spreads_ && result_.alpha == T(1) && result_.beta == T(0) && width == padded;
    for (int64_t i = begin; i < end; ++i) direct &= walk_.starts[i] < walk_.starts[i + 1];
    const auto after = [&](int64_t i) { return i + 1 < end ? i + 1 : space.next; };
    if (direct) {
      for (int64_t i = begin; i < end; ++i)
        sum_block_row(i, after(i), first, rows, result_.y + first * result_.ldy + i * side, result_.ldy,
                      result_.bias == nullptr ? nullptr : result_.bias + i * side, space);
    } else {
      space.sums.resize(std::max<size_t>(space.sums.size(), rows * padded));
      for (int64_t i = begin; i < end; ++i)
        sum_block_row(i, after(i), first, rows, space.sums.data() + (i - begin) * side, padded, nullptr, space);
      result_.write(out, width, first, rows, padded, space.sums.data(), space.bias);
    }
  }

  // y [rows, out_side] of block row i, before that of block row `next`.
  void sum_block_row(int64_t i, int64_t next, int64_t first, int64_t rows, T* y, int64_t ldy, const T* bias,
                     Workspace& space) const {
    const int64_t end = walk_.starts[i + 1], all = walk_.starts[walk_.rows];
    bool add = false;
    for (int64_t k = walk_.starts[i]; k < end; add = true) {
      space.pieces.clear();
      for (const int64_t last = end - k <= most_blocks() ? end : k + usual_blocks(); k < last; ++k) {
        const int64_t j = walk_.neighbors[k];
        PanelPiece<T> piece{panel(i, k, space), x_ + first * ldx_ + j * walk_.in_side, ldx_, walk_.in_extent(j)};
        if (fetches_) piece.upcoming = stored(std::min(walk_.starts[next] + k - walk_.starts[i], all - 1));
        if (!spreads_ && piece.k < along_) {
          space.last.resize(rows * along_);
          copy_rows(piece.x, ldx_, 0, rows, 0, piece.k, along_, space.last.data());
          piece = {piece.panel, space.last.data(), along_, along_};
        }
        space.pieces.push_back(piece);
      }
      const int64_t count = space.pieces.size();
      if (spreads_)
        product_.spread(rows, along_, space.pieces.data(), count, y, ldy, k == end ? bias : nullptr, add);
      else
        product_.dots(rows, walk_.out_extent(i), space.pieces.data(), count, y, ldy, add);
    }
    for (int64_t m = 0; !add && m < rows; ++m) std::fill_n(y + m * ldy, walk_.out_side, T(0));
  }

  // Blocks in a chain of sums, and where the block row ends with it: a short chain after it would cost as much of y as a long.
  int64_t usual_blocks() const {
    const int64_t chain = spreads_ ? kPanelChain : kPanelChain / 2 * product_.vector();
    return std::max<int64_t>(1, chain / walk_.in_side);
  }
  int64_t most_blocks() const { return usual_blocks() + usual_blocks() / 2; }

  const T* stored(int64_t k) const { return values_ + walk_.block(k) * masks_.elements; }

  // The k-th block of block row i, zeros past the matrix and off its mask.
  const T* panel(int64_t i, int64_t k, Workspace& space) const {
    const int64_t elements = masks_.elements;
    if (!fetches_ && k + 1 < walk_.starts[walk_.rows]) prefetch(stored(k + 1), elements);
    space.block.resize(elements);
    const T* block = block_operands(stored(k), masks_.of(walk_.block(k)), elements, space.block.data());
    const int64_t extent = spreads_ ? walk_.out_extent(i) : walk_.in_extent(walk_.neighbors[k]);
    if (!copies_ && extent == along_ && block != space.block.data()) return block;
    space.panels.resize((most_blocks() * across_ + kPanelMultiple) * along_);
    T* out = space.panels.data() + space.pieces.size() * across_ * along_;
    for (int64_t c = 0; c < along_; c += strip_) {
      const int64_t some = std::clamp<int64_t>(extent - c, 0, strip_);
      if (transposes_)
        to_panel(block + c * across_, strip_, across_, some, out + c * across_, strip_);
      else
        copy_rows(block + c, along_, 0, across_, 0, some, strip_, out + c * across_);
    }
    return out;
  }

  Walk walk_;
  Masks masks_;
  const T *values_, *x_;
  int64_t batch_, ldx_;
  const Result<T, T>& result_;
  bool spreads_;            // vectors run along y, not along x
  int64_t along_, across_;  // a block's side along which vectors run, and the other
  bool transposes_;         // to make a panel
  bool copies_;             // blocks, also where they are stored as panels
  int64_t strip_;           // columns of a panel that lie together
  bool fetches_;            // the next block row while this one is multiplied
  PanelProduct<T> product_;
  at::Tensor copy_;  // of x
};

}  // namespace efcn_sparse::cpu
