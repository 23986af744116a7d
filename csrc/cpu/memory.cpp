// The C library gives large buffers back to the system when they are freed. Each page that comes anew costs a page fault,
// which takes longer than to write it.
#include "memory.h"

#include <ATen/Context.h>
#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <new>
#include <string>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace efcn_sparse::cpu {
namespace {

constexpr size_t kHuge = size_t{1} << 22;   // bytes that are worth huge pages
constexpr size_t kLarge = size_t{1} << 18;  // bytes that are worth keeping: below, the C library keeps them as a rule
constexpr size_t kMost = size_t{1} << 28;   // bytes that are kept in all, unless EFCN_KEEP_MEMORY=off
constexpr size_t kSpare = size_t{1} << 25;  // bytes that may be kept beside what was in use at one time
constexpr size_t kHugePage = size_t{1} << 21;

void ask_for_huge_pages(void* data, size_t size) {
#ifdef MADV_HUGEPAGE
  if (size < kHuge) return;
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto start = reinterpret_cast<uintptr_t>(data), first = (start + page - 1) / page * page;
  // where it cannot be it is refused, and nothing is lost
  madvise(reinterpret_cast<void*>(first), start + size - first, MADV_HUGEPAGE);
#endif
}

#ifdef __linux__
// Not from malloc, whose heap buffers of many sizes tear to pieces. Begins at a huge page if it has one; null if there is no
// memory left.
void* map(size_t size) {
  const size_t spare = size < kHuge ? 0 : kHugePage;
  void* found = mmap(nullptr, size + spare, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (found == MAP_FAILED) return nullptr;
  if (spare == 0) return found;
  auto* const begin = static_cast<char*>(found);
  const size_t before = (kHugePage - reinterpret_cast<uintptr_t>(begin) % kHugePage) % kHugePage;
  if (before > 0) munmap(begin, before);
  munmap(begin + before + size, spare - before);
  ask_for_huge_pages(begin + before, size);
  return begin + before;
}
void unmap(void* data, size_t size) { munmap(data, size); }
#else
constexpr std::align_val_t kLine{64};
void* map(size_t size) { return ::operator new(size, kLine, std::nothrow); }
void unmap(void* data, size_t) { ::operator delete(data, kLine); }
#endif

// Holds, in use and kept, half as much again as was in use at one time, or kSpare more: sizes differ within a step.
class KeptMemory final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t size) override {
    if (!wants(size)) return c10::GetCPUAllocator()->allocate(size);  // for a tensor whose size was changed
    size = (size + kPage - 1) / kPage * kPage;
    Block* block = take(size);
    if (block == nullptr) {
      void* data = map(size);
      if (data == nullptr) {
        clear();
        data = map(size);
      }
      if (data == nullptr) {
        used_ -= size;
        return c10::GetCPUAllocator()->allocate(size);  // whose error is torch's
      }
      block = new Block{data, size};
    }
    c10::profiledCPUMemoryReporter().New(block->data, size);
    return {block->data, block, &free, at::Device(at::kCPU)};
  }

  void copy_data(void* to, const void* from, size_t count) const override { default_copy_data(to, from, count); }

  void clear() {
    const std::unique_lock<std::timed_mutex> lock(mutex_, std::chrono::seconds(1));
    if (lock) drop_to(0);
  }

  // Whether a tensor of `size` bytes is ours: without keeping, only huge pages are worth a mapping of its own.
  bool wants(size_t size) const { return size >= (most_ > 0 ? kLarge : kHuge); }

  static KeptMemory& get() {
    static auto* kept = new KeptMemory;  // never destroyed: tensors may be freed after everything else
    return *kept;
  }

 private:
  struct Block {
    void* data;
    size_t size;
  };
  static constexpr size_t kPage = size_t{1} << 16;  // the largest that systems have

  static void free(void* freed) {
    auto* block = static_cast<Block*>(freed);
    c10::profiledCPUMemoryReporter().Delete(block->data);
    get().give(block);
  }

  static void release(Block* block) {
    unmap(block->data, block->size);
    delete block;
  }

  // The closest fit, and of those the one freed last, whose numbers are likely in the caches. Without one, what is kept
  // makes room for new memory.
  Block* take(size_t size) {
    const std::unique_lock<std::timed_mutex> lock(mutex_, std::try_to_lock);
    if (!lock) {
      used_ += size;
      return nullptr;
    }
    auto found = kept_.end();
    for (auto at = kept_.begin(); at != kept_.end(); ++at)
      if ((*at)->size >= size && (*at)->size - size <= size / 8 &&
          (found == kept_.end() || (*at)->size <= (*found)->size))
        found = at;
    Block* block = found == kept_.end() ? nullptr : *found;
    const size_t used = used_ += block == nullptr ? size : block->size;
    most_used_ = std::max(most_used_, used);
    if (block == nullptr) {
      drop_to(most_used_ + std::max(most_used_ / 2, kSpare) - used);
    } else {
      kept_.erase(found);
      bytes_ -= block->size;
    }
    return block;
  }

  // Keeps a block, in place of the oldest ones.
  void give(Block* block) {
    used_ -= block->size;
    const std::unique_lock<std::timed_mutex> lock(mutex_, std::try_to_lock);
    if (!lock || block->size > most_) return release(block);
    drop_to(most_ - block->size);
    kept_.push_back(block);
    bytes_ += block->size;
  }

  void drop_to(size_t most) {
    auto last = kept_.begin();
    for (; bytes_ > most; ++last) {
      bytes_ -= (*last)->size;
      release(*last);
    }
    kept_.erase(kept_.begin(), last);
  }

  static bool keeps() {
    const char* setting = std::getenv("EFCN_KEEP_MEMORY");
    return setting == nullptr || std::string(setting) != "off";
  }

  const size_t most_ = keeps() ? kMost : 0;  // bytes of what is kept
  std::timed_mutex mutex_;                   // for which no tensor waits: after a fork, whoever held it may be gone
  std::vector<Block*> kept_;                 // in the order in which they were freed
  size_t bytes_ = 0;                         // of those
  std::atomic<size_t> used_{0};
  size_t most_used_ = 0;  // at one time
};

// Where to get memory for a plain CPU tensor of `size` bytes; null where torch's own functions shall see to it.
c10::Allocator* allocator_for(size_t size, const at::TensorOptions& options) {
  if (!KeptMemory::get().wants(size)) return nullptr;
  const bool filled =
      at::globalContext().deterministicAlgorithms() && at::globalContext().deterministicFillUninitializedMemory();
  const bool plain = options.device().is_cpu() && !options.pinned_memory() && !filled &&
                     !c10::impl::TorchDispatchModeTLS::any_modes_set();
  return plain ? &KeptMemory::get() : nullptr;
}

}  // namespace

at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options, at::MemoryFormat format) {
  const auto dtype = c10::typeMetaToScalarType(options.dtype());
  const size_t size = at::detail::computeStorageNbytesContiguous(sizes, options.dtype().itemsize());
  if (auto* allocator = allocator_for(size, options))
    return at::detail::empty_generic(sizes, allocator, c10::DispatchKeySet(c10::DispatchKey::CPU), dtype, format);
  return at::empty(sizes, options, format);
}

at::Tensor empty_strided(at::IntArrayRef sizes, at::IntArrayRef strides, const at::TensorOptions& options) {
  const auto dtype = c10::typeMetaToScalarType(options.dtype());
  const size_t size = at::detail::computeStorageNbytes(sizes, strides, options.dtype().itemsize());
  if (auto* allocator = allocator_for(size, options))
    return at::detail::empty_strided_generic(sizes, strides, allocator, c10::DispatchKeySet(c10::DispatchKey::CPU),
                                             dtype);
  return at::empty_strided(sizes, strides, options);
}

void empty_cache() { KeptMemory::get().clear(); }

void in_huge_pages(const at::Tensor& fresh) {
  const bool is_ours = fresh.device().is_cpu() && !fresh.key_set().has(c10::DispatchKey::Python);
  if (is_ours) ask_for_huge_pages(fresh.data_ptr(), fresh.nbytes());
}

}  // namespace efcn_sparse::cpu
