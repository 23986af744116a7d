// How kernels share the work.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace efcn_sparse::cpu {

// As many threads as repay waking them, which takes about as long as 2^17 multiplications.
inline int64_t threads_for(int64_t multiplications) {
  return std::clamp<int64_t>(multiplications >> 17, 1, at::get_num_threads());
}

// Runs worker(next) on every thread, where next() is the number of a task not yet taken, or -1. Each task writes its own part
// of the result, so the order does not change a number.
template <typename Worker>
void share_tasks(int64_t tasks, Worker&& worker, int64_t most_threads = at::get_num_threads()) {
  const int64_t threads = std::max<int64_t>(1, std::min(most_threads, tasks));
  std::atomic<int64_t> taken{0};
  auto next = [&]() -> int64_t {
    const int64_t task = taken.fetch_add(1, std::memory_order_relaxed);
    return task < tasks ? task : -1;
  };
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    if (begin < end) worker(next);
  });
}

}  // namespace efcn_sparse::cpu
