// Stored blocks with zeros off their masks.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <type_traits>

namespace efcn_sparse::cpu {

// to = from where the mask is set, else zero: by bits, of which compilers make vectors. Both may be the same.
template <typename T>
void keep_inside(const T* from, const uint8_t* mask, int64_t elements, T* to) {
  using Unsigned = std::conditional_t<sizeof(T) == 2, uint16_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>>;
  typedef Unsigned Bits __attribute__((may_alias));
  const auto* in = reinterpret_cast<const Bits*>(from);
  auto* out = reinterpret_cast<Bits*>(to);
#pragma GCC ivdep
  for (int64_t e = 0; e < elements; ++e) out[e] = in[e] & -static_cast<Bits>(mask[e] != 0);
}

// Numbers of 16 bits as fp32.
void widen(const c10::BFloat16* from, int64_t count, float* to);
void widen(const c10::Half* from, int64_t count, float* to);

// A stored block as operands with zeros off its mask: the stored numbers themselves where they serve.
template <typename Stored, typename Operand>
const Operand* block_operands(const Stored* block, const uint8_t* mask, int64_t elements, Operand* buffer) {
  const Operand* numbers = buffer;
  if constexpr (std::is_same_v<Stored, Operand>) {
    numbers = block;
  } else {
    widen(block, elements, buffer);
  }
  if (mask == nullptr) return numbers;
  keep_inside(numbers, mask, elements, buffer);
  return buffer;
}

}  // namespace efcn_sparse::cpu
