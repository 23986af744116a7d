// SpMM with columns of the batch: x is transposed once, some rows of the batch at a time, and the weights are read as they
// are stored. The result of a few block rows is transposed back when it is written.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "memory.h"
#include "operands.h"
#include "pack.h"
#include "product_columns.h"
#include "result.h"
#include "threads.h"

namespace efcn_sparse::cpu {

constexpr int64_t kGroupRows = 48;  // rows of the batch in one task: a strip or more
constexpr int64_t kColumnsBytes =
    1ll << 20;  // of x, transposed at a time, for each thread: the L2 cache of a current core
constexpr int64_t kFeaturesTogether = 64;  // that are transposed in one task
constexpr int64_t kChunkK = 128;           // features whose columns stay in the L1 cache

template <typename Stored, typename Sum>
class ByColumns {
 public:
  ByColumns(const at::Tensor& x, const Stored* values, const Walk& walk, const Masks& masks,
            const Result<Stored, Sum>& result)
      : walk_(walk), masks_(masks), values_(values), x_(x.const_data_ptr<Stored>()), batch_(x.size(0)),
        ldx_(x.stride(0)), result_(result), threads_(threads_for(batch_ * walk.starts[walk.rows] * masks.elements)) {
    const int64_t vector = ColumnProduct<Sum>::vector(), most = ColumnProduct<Sum>::most_lanes() / vector;
    const int64_t vectors = (batch_ + vector - 1) / vector, number = (vectors + most - 1) / most;
    for (int64_t s = 0; s < number; ++s) {  // as equal as can be
      const int64_t begin = s * vectors / number, end = (s + 1) * vectors / number;
      strips_.push_back({begin * vector, (end - begin) * vector});
    }
    const int64_t widest = (vectors + number - 1) / number * vector, bytes = widest * walk.in_features * sizeof(Sum);
    together_ = std::max<int64_t>(1, kGroupRows / widest);
    at_once_ = std::max<int64_t>(1, kColumnsBytes * threads_ / std::max<int64_t>(1, bytes));
    at_once_ = std::min(number, round_up(at_once_, together_));
    columns_ = empty({at_once_ * widest * walk.in_features}, x.options().dtype(c10::CppTypeToScalarType<Sum>::value));
    used_.assign((walk.in_features + kFeaturesTogether - 1) / kFeaturesTogether, 0);
    for (int64_t k = 0; k < walk.starts[walk.rows]; ++k) {
      const int64_t begin = walk.neighbors[k] * walk.in_side, last = begin + walk.in_extent(walk.neighbors[k]) - 1;
      for (int64_t f = begin / kFeaturesTogether; f <= last / kFeaturesTogether; ++f) used_[f] = 1;
    }
  }

  void run() {
    for (int64_t s = 0; s < static_cast<int64_t>(strips_.size()); s += at_once_) {
      const int64_t count = std::min<int64_t>(at_once_, strips_.size() - s);
      transpose_rows(&strips_[s], count);
      multiply(&strips_[s], count);
    }
  }

 private:
  struct Workspace {
    Buffer<Sum> weights, columns, sums, bias;
    std::vector<Piece<Sum>> pieces;
  };

  // Rows [row, row + lanes) of the batch, as columns; there are zeros past its end.
  struct Strip {
    int64_t row, lanes;
  };

  // columns_ [strip][features][lanes]
  void transpose_rows(const Strip* strips, int64_t count) {
    const int64_t parts = used_.size(), grain = (1 << 15) / (strips[0].lanes * kFeaturesTogether) + 1;
    auto* columns = columns_.template mutable_data_ptr<Sum>();
    at::parallel_for(0, count * parts, grain, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const Strip& strip = strips[task / parts];
        const int64_t f = task % parts * kFeaturesTogether;
        if (!used_[task % parts]) continue;
        const int64_t rows = std::min(strip.lanes, batch_ - strip.row);
        const int64_t extent = std::min(kFeaturesTogether, walk_.in_features - f);
        Sum* out = columns + (strip.row - strips[0].row) * walk_.in_features + f * strip.lanes;
        if (rows < strip.lanes) std::fill_n(out, extent * strip.lanes, Sum(0));
        for (int64_t m = 0; m < rows; m += 8) {  // rows whose stride is a power of two share a cache set, of 8 lines
          const int64_t some = std::min<int64_t>(8, rows - m);
          const Stored* in = x_ + (strip.row + m) * ldx_ + f;
          if constexpr (std::is_same_v<Stored, Sum>) {
            transpose(in, ldx_, out + m, strip.lanes, some, extent);
          } else {
            Sum widened[8 * kFeaturesTogether];
            for (int64_t r = 0; r < some; ++r) widen(in + r * ldx_, extent, widened + r * kFeaturesTogether);
            transpose(widened, kFeaturesTogether, out + m, strip.lanes, some, extent);
          }
        }
      }
    });
  }

  void multiply(const Strip* strips, int64_t count) {
    const int64_t groups = (count + together_ - 1) / together_;
    int64_t side_by_side = std::max<int64_t>(1, kTogether / walk_.out_side);
    while (side_by_side > 1 && (walk_.rows + side_by_side - 1) / side_by_side * groups < 4 * threads_)
      side_by_side /= 2;
    const std::vector<int64_t> firsts = walk_.strips(side_by_side, groups < threads_);
    const int64_t sets = firsts.size();
    share_tasks(
        sets * groups,
        [&](auto&& next) {
          Workspace space;
          for (int64_t task = next(); task >= 0; task = next()) {
            const int64_t s = task / sets * together_, i = firsts[task % sets];
            const auto* columns =
                columns_.template const_data_ptr<Sum>() + (strips[s].row - strips[0].row) * walk_.in_features;
            block_rows(i, std::min(walk_.rows, i + side_by_side), strips + s, std::min(together_, count - s), columns,
                       space);
          }
        },
        threads_, groups);
  }

  // Block rows [begin, end) of the result for some strips, whose `columns` are given.
  void block_rows(int64_t begin, int64_t end, const Strip* strips, int64_t count, const Sum* columns,
                  Workspace& space) const {
    const int64_t width = (end - 1 - begin) * walk_.out_side + walk_.out_extent(end - 1), row = strips[0].row;
    const int64_t padded = strips[count - 1].row + strips[count - 1].lanes - row, out = begin * walk_.out_side;
    const bool plain = std::is_same_v<Stored, Sum> && result_.is_plain();
    space.columns.resize(std::max<size_t>(space.columns.size(), width * padded));
    for (int64_t i = begin; i < end; ++i)
      sum_block_row(i, (i - begin) * walk_.out_side, width, strips, count, columns, space);
    if (!plain) space.sums.resize(std::max<size_t>(space.sums.size(), width * padded));
    for (int64_t s = 0; s < count; ++s) {
      const int64_t rows = std::min(strips[s].lanes, batch_ - strips[s].row), place = (strips[s].row - row) * width;
      const Sum* sums = space.columns.data() + place;
      if constexpr (std::is_same_v<Stored, Sum>)
        if (plain) {
          transpose(sums, strips[s].lanes, result_.y + strips[s].row * result_.ldy + out, result_.ldy, width, rows);
          continue;
        }
      transpose(sums, strips[s].lanes, space.sums.data() + place, width, width, rows);
    }
    if (!plain) result_.write(out, width, row, std::min(padded, batch_ - row), width, space.sums.data(), space.bias);
  }

  // space.columns [strip][width][lanes], from `offset` of width on.
  void sum_block_row(int64_t i, int64_t offset, int64_t width, const Strip* strips, int64_t count, const Sum* columns,
                     Workspace& space) const {
    const int64_t end = walk_.starts[i + 1], all = walk_.starts[walk_.rows], elements = masks_.elements;
    const int64_t n = walk_.out_extent(i), most = (kChunkK + walk_.in_side - 1) / walk_.in_side;
    const auto sums_of = [&](const Strip& strip) {
      return space.columns.data() + (strip.row - strips[0].row) * width + offset * strip.lanes;
    };
    constexpr bool stays = std::is_same_v<Stored, Sum>;
    if (!stays || masks_.index != nullptr) space.weights.resize(most * elements);
    bool add = false;
    for (int64_t k = walk_.starts[i]; k < end; add = true) {
      const int64_t chunk = std::min(end - k, most), upcoming = std::min(all - k - chunk, most);
      space.pieces.resize(chunk + upcoming);
      for (int64_t p = 0; p < chunk + upcoming; ++p) {
        const int64_t block = walk_.block(k + p);
        const Stored* stored = values_ + block * elements;
        space.pieces[p].k = walk_.in_extent(walk_.neighbors[k + p]);
        if (p < chunk)
          space.pieces[p].weights =
              block_operands(stored, masks_.of(block), elements, space.weights.data() + p * elements);
        else if constexpr (stays)
          space.pieces[p].weights = stored;
        else
          prefetch(stored, elements);
      }
      for (int64_t s = 0; s < count; ++s) {
        for (int64_t p = 0; p < chunk; ++p)
          space.pieces[p].columns = columns + (strips[s].row - strips[0].row) * walk_.in_features +
                                    walk_.neighbors[k + p] * walk_.in_side * strips[s].lanes;
        const bool along = walk_.stored_out_by_in;
        const ColumnProduct<Sum> product{strips[s].lanes, along ? walk_.in_side : walk_.out_side, along};
        const Piece<Sum>& first = space.pieces[0];
        if (first.k <= kChunkK)
          product.run(n, space.pieces.data(), chunk, stays ? upcoming : 0, sums_of(strips[s]), add);
        else  // in parts, since long chains of sums round badly; such a block is a chunk of its own
          for (int64_t f = 0; f < first.k; f += kChunkK) {
            const Piece<Sum> part{first.weights + f * (along ? 1 : product.ld), first.columns + f * product.lanes,
                                  std::min(kChunkK, first.k - f)};
            product.run(n, &part, 1, 0, sums_of(strips[s]), add || f > 0);
          }
      }
      k += chunk;
    }
    for (int64_t s = 0; !add && s < count; ++s) std::fill_n(sums_of(strips[s]), n * strips[s].lanes, Sum(0));
  }

  Walk walk_;
  Masks masks_;
  const Stored *values_, *x_;
  int64_t batch_, ldx_;
  const Result<Stored, Sum>& result_;
  int64_t threads_;
  std::vector<Strip> strips_;
  int64_t together_, at_once_;  // strips in one task; strips that are transposed at a time
  at::Tensor columns_;
  std::vector<char> used_;  // by kFeaturesTogether features
};

}  // namespace efcn_sparse::cpu
