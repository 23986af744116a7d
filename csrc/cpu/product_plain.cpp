// The dense product C [M, N] (+)= A [M, K] B [K, N]: B is a panel as product_panels.h has them, but that its last columns may
// fill no vector.
#include <algorithm>

#include "product.h"
#include "product_panels.h"

namespace efcn_sparse::cpu {
namespace {

// Columns that fill no vector: B goes through a copy that is padded with zeros, a piece of K at a time.
template <typename T>
void narrow(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb, T* c, int64_t ldc,
            bool add) {
  constexpr int64_t kWidest = 64 / sizeof(T), kRows = 24, kPiece = 256;
  const int64_t width = PanelProduct<T>::vector();
  T right[kPiece * kWidest], sums[kRows * kWidest];
  for (int64_t first = 0; first < k || first == 0; first += kPiece) {
    const int64_t length = std::min(kPiece, k - first);
    for (int64_t p = 0; p < length; ++p)
      for (int64_t j = 0; j < width; ++j) right[p * width + j] = j < n ? b[(first + p) * ldb + j] : T(0);
    for (int64_t i = 0; i < m; i += kRows) {
      const int64_t some = std::min(kRows, m - i);
      const PanelPiece<T> piece{right, a + i * lda + first, lda, length};
      PanelProduct<T>{width}.spread(some, width, &piece, 1, sums, width, nullptr, false);
      for (int64_t r = 0; r < some; ++r)
        for (int64_t j = 0; j < n; ++j) {
          T* out = c + (i + r) * ldc + j;
          *out = sums[r * width + j] + (add || first > 0 ? *out : T(0));
        }
    }
  }
}

}  // namespace

template <typename T>
void plain_product(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb, T* c, int64_t ldc,
                   bool add) {
  const int64_t whole = n / PanelProduct<T>::vector() * PanelProduct<T>::vector();
  const PanelPiece<T> piece{b, a, lda, k};
  if (whole > 0) PanelProduct<T>{ldb}.spread(m, whole, &piece, 1, c, ldc, nullptr, add);
  if (whole < n) narrow(m, n - whole, k, a, lda, b + whole, ldb, c + whole, ldc, add);
}

template void plain_product(int64_t, int64_t, int64_t, const float*, int64_t, const float*, int64_t, float*, int64_t,
                            bool);
template void plain_product(int64_t, int64_t, int64_t, const double*, int64_t, const double*, int64_t, double*, int64_t,
                            bool);

}  // namespace efcn_sparse::cpu
