// The C library gives large buffers back to the system when they are freed. In pages of 4 KiB, each that comes anew costs a
// page fault, which takes longer than to write it.
#include "huge_pages.h"

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <cstdint>

namespace efcn_sparse::cpu {

at::Tensor in_huge_pages(at::Tensor fresh) {
#ifdef MADV_HUGEPAGE
  constexpr size_t kLarge = size_t{1} << 22;
  const bool is_ours = fresh.device().is_cpu() && !fresh.key_set().has(c10::DispatchKey::Python);
  if (is_ours && fresh.nbytes() >= kLarge) {
    const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const auto start = reinterpret_cast<uintptr_t>(fresh.data_ptr()), first = (start + page - 1) / page * page;
    // where it cannot be it is refused, and nothing is lost
    madvise(reinterpret_cast<void*>(first), start + fresh.nbytes() - first, MADV_HUGEPAGE);
  }
#endif
  return fresh;
}

}  // namespace efcn_sparse::cpu
