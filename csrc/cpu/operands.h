// Stored blocks with zeros off their masks.
#pragma once

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

// A stored block [height, width] as operands with zeros off its mask: the stored numbers themselves where they serve.
template <typename Stored, typename Operand>
const Operand* block_operands(const Stored* block, const uint8_t* mask, int64_t elements, Operand* buffer) {
  if constexpr (std::is_same_v<Stored, Operand>) {
    if (mask == nullptr) return block;
    keep_inside(block, mask, elements, buffer);
  } else if (mask == nullptr) {
    for (int64_t e = 0; e < elements; ++e) buffer[e] = static_cast<Operand>(block[e]);
  } else {
    for (int64_t e = 0; e < elements; ++e) buffer[e] = mask[e] ? static_cast<Operand>(block[e]) : Operand(0);
  }
  return buffer;
}

}  // namespace efcn_sparse::cpu
