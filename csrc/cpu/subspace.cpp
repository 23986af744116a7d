// Distance of stored blocks from the CNN subspace, and projection onto it: one pass over the values.
//
// Copies of one kernel entry lie at the same place of every block of a class, so sums over copies are sums over blocks,
// element by element. Differences are taken to the class's first block: equal copies give exactly zero. A kernel entry
// that several places copy (blocks that span pixels) is put together from their sums afterwards, in a fixed order.
#include "operations.h"

#include <array>
#include <memory>
#include <vector>

#include "product.h"
#include "subspace_plan.h"
#include "subspace_tiles.h"
#include "threads.h"

namespace efcn_sparse::cpu {
namespace {

constexpr int64_t kEntriesPerTask = 2048;

struct Squares {
  double tied = 0, untied = 0, off_local = 0;
};

using Tile = std::array<double, kSlice>;

// What mixed classes hand over: for each of their elements the sums over its copies, and how many there are.
class Workspace {
 public:
  explicit Workspace(int64_t positions)
      : positions_(positions), data_(std::make_unique_for_overwrite<double[]>(4 * positions)) {}

  double* reference(int64_t at) const { return data_.get() + at; }
  double* sum(int64_t at) const { return data_.get() + positions_ + at; }
  double* squares(int64_t at) const { return data_.get() + 2 * positions_ + at; }
  double* count(int64_t at) const { return data_.get() + 3 * positions_ + at; }

 private:
  int64_t positions_;
  std::unique_ptr<double[]> data_;
};

// One kernel entry put together from its places in mixed classes (Chan, Golub and LeVeque 1979).
struct Entry {
  double count = 0, mean = 0, untied = 0;

  Entry(const Workspace& space, const int64_t* begin, const int64_t* end) {
    const double reference = *space.reference(*begin), shift = *space.sum(*begin) / *space.count(*begin);
    double within = 0, distance = 0, distance_squared = 0;
    for (const int64_t* at = begin; at < end; ++at) {
      const double n = *space.count(*at), sum = *space.sum(*at);
      const double from_first = (*space.reference(*at) - reference) + (sum / n - shift);
      count += n;
      within += *space.squares(*at) - sum * (sum / n);
      distance += n * from_first;
      distance_squared += n * from_first * from_first;
    }
    const double between = distance_squared - distance * (distance / count);
    mean = reference + (shift + distance / count);
    untied = (within < 0 ? 0 : within) + (between < 0 ? 0 : between);
  }
};

template <typename T>
T narrow(double x) {
  if constexpr (std::is_same_v<T, double>) return x;
  return static_cast<T>(static_cast<float>(x));
}

template <typename T>
class Subspace {
 public:
  Subspace(T* values, const SubspacePlan& plan) : plan_(plan), values_(values), space_(plan.n_positions) {}

  Squares read() const {
    const int64_t entry_tasks = (plan_.n_entries + kEntriesPerTask - 1) / kEntriesPerTask;
    std::vector<Squares> parts(plan_.n_units + entry_tasks);
    share(plan_.n_units, [&](int64_t task) { parts[task] = read_unit(plan_.units[task]); });
    share(entry_tasks, [&](int64_t task) { parts[plan_.n_units + task] = read_entries(task); });
    Squares total;
    for (const Squares& part : parts) {
      total.tied += part.tied;
      total.untied += part.untied;
      total.off_local += part.off_local;
    }
    return total;
  }

  void project(bool tie) const {
    share(plan_.n_units, [&](int64_t task) { project_unit(plan_.units[task], tie); });
    if (!tie || plan_.n_entries == 0) return;
    const int64_t entry_tasks = (plan_.n_entries + kEntriesPerTask - 1) / kEntriesPerTask;
    share(entry_tasks, [&](int64_t task) { average_entries(task); });
    share(plan_.n_units, [&](int64_t task) {
      const Unit& unit = plan_.units[task];
      if (plan_.kind(unit) == Kind::kMixed) write(unit, space_.reference(plan_.position(unit)));
    });
  }

 private:
  template <typename Task>
  static void share(int64_t tasks, Task&& run) {
    share_tasks(tasks, [&](auto&& next) {
      for (int64_t task = next(); task >= 0; task = next()) run(task);
    });
  }

  template <typename U>
  Copies<U> copies(const Unit& unit) const {
    const int32_t* blocks = plan_.blocks_by_class + plan_.class_starts[unit.class_index];
    if (plan_.kind(unit) == Kind::kOffLocal)
      return {values_, blocks + unit.begin, unit.end - unit.begin, plan_.tile, plan_.tile};
    const int64_t count = plan_.class_starts[unit.class_index + 1] - plan_.class_starts[unit.class_index];
    return {values_ + unit.begin, blocks, count, plan_.tile, unit.end - unit.begin};
  }

  // The sums over the copies of a tied or mixed slice; off-local elements are measured from zero.
  void add_up(const Unit& unit, const Copies<const T>& copies, double* reference, double* sum, double* squares) const {
    const int32_t* map = plan_.map(unit);
    for (int64_t j = 0; j < copies.width; ++j) {
      reference[j] = map[j] >= 0 ? static_cast<double>(copies[0][j]) : 0;
      sum[j] = squares[j] = 0;
    }
    add_copies(copies, {reference, sum, squares});
  }

  void add_up_mixed(const Unit& unit, const Copies<const T>& copies) const {
    const int64_t at = plan_.position(unit);
    add_up(unit, copies, space_.reference(at), space_.sum(at), space_.squares(at));
    std::fill_n(space_.count(at), copies.width, static_cast<double>(copies.count));
  }

  Squares read_unit(const Unit& unit) const {
    Squares part;
    const auto slice = copies<const T>(unit);
    if (plan_.kind(unit) == Kind::kOffLocal) {
      part.off_local = sum_of_squares(slice);
    } else if (plan_.kind(unit) == Kind::kTied) {
      Tile reference, sum, squares;
      add_up(unit, slice, reference.data(), sum.data(), squares.data());
      const Moments moments{reference.data(), sum.data(), squares.data()};
      add_tied_and_untied(moments, slice.count, slice.width, part.tied, part.untied);
    } else {
      add_up_mixed(unit, slice);
      const int32_t* map = plan_.map(unit);
      const double* squares = space_.squares(plan_.position(unit));
      for (int64_t j = 0; j < slice.width; ++j)
        if (map[j] == kOffLocal) part.off_local += squares[j];
    }
    return part;
  }

  template <typename Visit>
  void visit_entries(int64_t task, Visit&& visit) const {
    const int64_t end = std::min(plan_.n_entries, (task + 1) * kEntriesPerTask);
    for (int64_t i = task * kEntriesPerTask; i < end; ++i) {
      const int64_t *first = plan_.group_positions + plan_.group_starts[i],
                    *last = plan_.group_positions + plan_.group_starts[i + 1];
      visit(Entry(space_, first, last), first, last);
    }
  }

  Squares read_entries(int64_t task) const {
    Squares part;
    visit_entries(task, [&](const Entry& entry, const int64_t*, const int64_t*) {
      part.tied += entry.count * entry.mean * entry.mean;
      part.untied += entry.untied;
    });
    return part;
  }

  // Leaves each entry's mean in the workspace, at its places; the other elements there have a zero already.
  void average_entries(int64_t task) const {
    visit_entries(task, [&](const Entry& entry, const int64_t* first, const int64_t* last) {
      for (const int64_t* at = first; at < last; ++at) *space_.reference(*at) = entry.mean;
    });
  }

  void project_unit(const Unit& unit, bool tie) const {
    const Kind kind = plan_.kind(unit);
    if (kind == Kind::kOffLocal) {
      const auto slice = copies<T>(unit);
      for (int64_t i = 0; i < slice.count; ++i) std::fill_n(slice[i], slice.width, T(0));
    } else if (kind == Kind::kMixed) {
      tie ? add_up_mixed(unit, copies<const T>(unit)) : clear_off_local(unit);
    } else if (tie) {
      const auto slice = copies<const T>(unit);
      Tile mean, sum, squares;
      add_up(unit, slice, mean.data(), sum.data(), squares.data());
      for (int64_t j = 0; j < slice.width; ++j) mean[j] += sum[j] / static_cast<double>(slice.count);
      write(unit, mean.data());
    }
  }

  void clear_off_local(const Unit& unit) const {
    const auto slice = copies<T>(unit);
    const int32_t* map = plan_.map(unit);
    for (int64_t i = 0; i < slice.count; ++i) {
      T* block = slice[i];
      for (int64_t j = 0; j < slice.width; ++j)
        if (map[j] < 0) block[j] = T(0);
    }
  }

  void write(const Unit& unit, const double* mean) const {
    const auto slice = copies<T>(unit);
    std::array<T, kSlice> tile;
    for (int64_t j = 0; j < slice.width; ++j) tile[j] = narrow<T>(mean[j]);
    for (int64_t i = 0; i < slice.count; ++i) std::copy_n(tile.data(), slice.width, slice[i]);
  }

  const SubspacePlan& plan_;
  T* values_;
  Workspace space_;
};

}  // namespace

at::Tensor subspace_squares(const at::Tensor& values, at::TensorList plan) {
  const SubspacePlan checked(plan, values);
  Squares squares;
  dispatch_operand(values.scalar_type(), "values", [&](auto tag, auto) {
    using T = decltype(tag);
    squares = Subspace<T>(const_cast<T*>(values.const_data_ptr<T>()), checked).read();  // read() writes nothing
  });
  auto result = values.new_empty({3}, at::kDouble);
  auto* out = result.mutable_data_ptr<double>();
  out[0] = squares.tied;
  out[1] = squares.untied;
  out[2] = squares.off_local;
  return result;
}

void subspace_project(at::Tensor& values, at::TensorList plan, bool tie) {
  const SubspacePlan checked(plan, values);
  dispatch_operand(values.scalar_type(), "values", [&](auto tag, auto) {
    using T = decltype(tag);
    Subspace<T>(values.mutable_data_ptr<T>(), checked).project(tie);
  });
}

}  // namespace efcn_sparse::cpu
