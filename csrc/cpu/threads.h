// How kernels share the work.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

namespace efcn_sparse::cpu {

// As many threads as repay waking them, which takes about as long as 2^17 multiplications.
inline int64_t threads_for(int64_t multiplications) {
  return std::clamp<int64_t>(multiplications >> 17, 1, at::get_num_threads());
}

// Runs worker(next) on every thread, where next() is the number of a task not yet taken, or -1. Each task writes its own part
// of the result, so the order does not change a number. Tasks come in groups of equally many; a thread begins with those
// of its share of the groups, as at::parallel_for divides them, since what it wrote lies in its own caches.
template <typename Worker>
void share_tasks(int64_t tasks, Worker&& worker, int64_t most_threads = at::get_num_threads(), int64_t groups = 1) {
  const int64_t threads = std::max<int64_t>(1, std::min(most_threads, tasks)), in_group = tasks / groups;
  std::vector<std::atomic<int64_t>> taken(groups);
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    int64_t group = begin * groups / threads, ended = 0;
    auto next = [&]() -> int64_t {
      for (; ended < groups; ++ended, group = (group + 1) % groups) {
        const int64_t task = taken[group].fetch_add(1, std::memory_order_relaxed);
        if (task < in_group) return group * in_group + task;
      }
      return -1;
    };
    if (begin < end) worker(next);
  });
}

}  // namespace efcn_sparse::cpu
