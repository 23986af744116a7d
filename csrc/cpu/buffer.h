// Memory for a thread's own work. It begins at a cache line, since vectors that lie across two of them are loaded twice, and
// holds whatever was there before.
#pragma once

#include <cstddef>
#include <new>
#include <vector>

namespace efcn_sparse::cpu {

template <typename T>
struct AtCacheLine {
  using value_type = T;
  static constexpr std::align_val_t kLine{64};

  AtCacheLine() = default;
  template <typename U>
  AtCacheLine(const AtCacheLine<U>&) {}
  T* allocate(std::size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), kLine)); }
  void deallocate(T* data, std::size_t) { ::operator delete(data, kLine); }
  template <typename U>
  void construct(U* element) {
    ::new (static_cast<void*>(element)) U;  // no zeros
  }
  bool operator==(const AtCacheLine&) const { return true; }
};

template <typename T>
using Buffer = std::vector<T, AtCacheLine<T>>;

}  // namespace efcn_sparse::cpu
