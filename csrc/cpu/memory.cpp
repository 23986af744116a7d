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
#include <cstdint>
#include <mutex>
#include <new>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace efcn_sparse::cpu {
namespace {

constexpr size_t kLarge = size_t{1} << 20;  // bytes of what is kept
constexpr size_t kMost = size_t{1} << 28;   // bytes that are kept in all
constexpr size_t kHuge = size_t{1} << 22;   // bytes that are worth huge pages
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

class KeptMemory final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t size) override {
    Block* block = take(size);
    if (block == nullptr) {
      void* data = ::operator new(size, alignment_of(size), std::nothrow);
      if (data == nullptr) return c10::GetCPUAllocator()->allocate(size);  // whose error is torch's
      ask_for_huge_pages(data, size);
      block = new Block{data, size};
    }
    c10::profiledCPUMemoryReporter().New(block->data, size);
    return {block->data, block, &free, at::Device(at::kCPU)};
  }

  void copy_data(void* to, const void* from, size_t count) const override { default_copy_data(to, from, count); }

  void clear() {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (lock) drop_to(0);
  }

  static KeptMemory& get() {
    static auto* kept = new KeptMemory;  // never destroyed: tensors may be freed after everything else
    return *kept;
  }

 private:
  struct Block {
    void* data;
    size_t size;
  };

  static std::align_val_t alignment_of(size_t size) { return std::align_val_t{size < kHuge ? 64 : kHugePage}; }

  static void free(void* freed) {
    auto* block = static_cast<Block*>(freed);
    c10::profiledCPUMemoryReporter().Delete(block->data);
    get().give(block);
  }

  static void release(Block* block) {
    ::operator delete(block->data, alignment_of(block->size));
    delete block;
  }

  // The last one freed that fits, whose numbers are likely in the caches.
  Block* take(size_t size) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock) return nullptr;
    const auto fits = [&](const Block* block) { return block->size >= size && block->size - size <= size / 8; };
    const auto found = std::find_if(kept_.rbegin(), kept_.rend(), fits);
    if (found == kept_.rend()) return nullptr;
    Block* block = *found;
    kept_.erase(std::next(found).base());
    bytes_ -= block->size;
    return block;
  }

  // Keeps a block, in place of the oldest ones.
  void give(Block* block) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock || block->size < kLarge || block->size > kMost) return release(block);
    drop_to(kMost - block->size);
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

  std::mutex mutex_;          // which nobody waits for: after a fork, whoever held it may be gone
  std::vector<Block*> kept_;  // in the order in which they were freed
  size_t bytes_ = 0;
};

// Where to get memory for a plain CPU tensor of `size` bytes; null where torch's own functions shall see to it.
c10::Allocator* allocator_for(size_t size, const at::TensorOptions& options) {
  if (size < kLarge) return nullptr;
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
