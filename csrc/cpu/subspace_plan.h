// How the stored blocks of an embedded convolution are read; built once in efcn_sparse/subspace/plan.py.
#pragma once

#include <ATen/core/Tensor.h>

#include "structure.h"

namespace efcn_sparse::cpu {

constexpr int64_t kSlice = 512;  // most elements of a block that one unit handles: its sums stay in the L1 cache
constexpr int32_t kOffLocal = -1;

enum class Kind : int32_t { kTied = 0, kOffLocal = 1, kMixed = 2 };

// A task. Tied and mixed classes: all copies of the elements [begin, end). Off-local classes: whole blocks, by rank.
struct Unit {
  int32_t class_index, begin, end;
};

struct SubspacePlan {
  const int32_t *maps, *class_starts, *blocks_by_class, *kinds;
  const int64_t* offsets;  // [classes] where a mixed class's elements lie in the workspace
  const Unit* units;
  const int64_t *group_starts, *group_positions;  // the workspace positions of each kernel entry in mixed classes
  int64_t n_units, n_entries, n_positions, tile;

  SubspacePlan(at::TensorList parts, const at::Tensor& values) {
    TORCH_CHECK(parts.size() == 8 && values.dim() == 3 && values.is_contiguous(),
                "plan must list 8 tensors and values be contiguous [nnz, rows, cols]");
    const int64_t classes = parts[3].numel();
    tile = values.size(1) * values.size(2);
    maps = checked_index(parts[0], classes * tile, "maps");
    class_starts = checked_index(parts[1], classes + 1, "class_starts");
    blocks_by_class = checked_index(parts[2], values.size(0), "blocks_by_class");
    kinds = checked_index(parts[3], classes, "kinds");
    for (const int i : {4, 6, 7})
      TORCH_CHECK(parts[i].scalar_type() == at::kLong && parts[i].is_contiguous(), "plan[", i, "] must be int64");
    TORCH_CHECK(parts[4].numel() == classes + 1, "offsets must be [", classes + 1, "], got [", parts[4].numel(), "]");
    offsets = parts[4].const_data_ptr<int64_t>();
    n_positions = offsets[classes];
    n_units = parts[5].size(0);
    units = reinterpret_cast<const Unit*>(checked_index(parts[5], 3 * n_units, "units"));
    group_starts = parts[6].const_data_ptr<int64_t>();
    group_positions = parts[7].const_data_ptr<int64_t>();
    n_entries = parts[6].numel() - 1;
  }

  Kind kind(const Unit& unit) const { return static_cast<Kind>(kinds[unit.class_index]); }
  const int32_t* map(const Unit& unit) const { return maps + unit.class_index * tile + unit.begin; }
  int64_t position(const Unit& unit) const { return offsets[unit.class_index] + unit.begin; }
};

}  // namespace efcn_sparse::cpu
