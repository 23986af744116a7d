#include "activations.h"

#include <c10/util/BFloat16.h>

#include <algorithm>
#include <limits>
#include <type_traits>

#include "vectors.h"

namespace efcn_sparse::cpu {
namespace {

// What numbers are compared and added as.
template <typename T>
using Number = std::conditional_t<std::is_same_v<T, c10::BFloat16>, float, T>;

}  // namespace

template <typename T>
void relu(const T* x, T* y, uint64_t* kept, int64_t count) {
  run_here(EFCN_LOOP() {
    in_stretches(
        count, EFCN_LOOP(int64_t first, auto size) {
          uint64_t word = 0;
          for (int64_t i = 0; i < size; ++i) {
            const Number<T> number = static_cast<Number<T>>(x[first + i]);
            word |= uint64_t{!(number <= 0)} << i;
            y[first + i] = static_cast<T>(number < 0 ? 0 : number);
          }
          kept[first / kWord] = word;
        });
  });
}

template <typename T>
void relu_backward(const T* dy, const uint64_t* kept, T* dx, int64_t count) {
  run_here(EFCN_LOOP() {
    in_stretches(
        count, EFCN_LOOP(int64_t first, auto size) {
          const uint64_t word = kept[first / kWord];
          for (int64_t i = 0; i < size; ++i)
            dx[first + i] = static_cast<T>((word >> i & 1) != 0 ? static_cast<Number<T>>(dy[first + i]) : 0);
        });
  });
}

template <typename T>
void MaxPool::forward(const T* x, int64_t row, bool rectifies, T* y, uint8_t* places) const {
  using Place = std::conditional_t<sizeof(Number<T>) == 4, int32_t, int64_t>;
  const MaxPool pool = *this;
  run_here(EFCN_LOOP() {
    // the part of a window that lies inside the image
    const auto inside = EFCN_LOOP(int dim, int64_t start, int64_t size, int64_t& first, int64_t& end) {
      const int64_t step = pool.dilation[dim];
      first = start < 0 ? (step - 1 - start) / step : 0;
      end = std::min(pool.kernel[dim], (size - start + step - 1) / step);
    };
    const int64_t top = row * pool.stride[0] - pool.padding[0];
    int64_t upper, lower;
    inside(0, top, pool.height, upper, lower);
    for (int64_t column = 0; column < pool.out_width; ++column) {
      const int64_t left = column * pool.stride[1] - pool.padding[1];
      int64_t begin, end;
      inside(1, left, pool.width, begin, end);
      const bool empty = upper >= lower || begin >= end;
      const Number<T> least = rectifies && !empty ? 0 : -std::numeric_limits<Number<T>>::infinity();
      const auto start = static_cast<Place>(rectifies || empty ? kNoPlace : upper * pool.kernel[1] + begin);
      // rows that the next row of windows adds are on their way
      const int64_t last_row = std::min(pool.height, top + pool.kernel[0] + pool.stride[0]);
      const int64_t last_column = std::min(pool.width, left + pool.stride[1]);
      for (int64_t h = std::max<int64_t>(0, top + pool.kernel[0]); h < last_row; ++h)
        for (int64_t c = std::max<int64_t>(0, left) * pool.channels; c < last_column * pool.channels;
             c += 64 / sizeof(T))
          __builtin_prefetch(x + h * pool.width * pool.channels + c);
      in_stretches(
          pool.channels, EFCN_LOOP(int64_t channel, auto size) {
            Number<T> best[kStretch];
            Place from[kStretch];
            for (int64_t c = 0; c < size; ++c) {
              best[c] = least;
              from[c] = start;
            }
            for (int64_t i = upper; i < lower; ++i)
              for (int64_t j = begin; j < end; ++j) {
                const int64_t h = top + i * pool.dilation[0], w = left + j * pool.dilation[1];
                const T* numbers = x + (h * pool.width + w) * pool.channels + channel;
                const Place place = static_cast<Place>(i * pool.kernel[1] + j);
                for (int64_t c = 0; c < size; ++c) {
                  const Number<T> number = static_cast<Number<T>>(numbers[c]);
                  const bool taken = (number > best[c]) | (number != number);
                  best[c] = taken ? number : best[c];
                  from[c] = taken ? place : from[c];
                }
              }
            const int64_t out = column * pool.channels + channel;
            for (int64_t c = 0; c < size; ++c) {
              y[out + c] = static_cast<T>(best[c]);
              places[out + c] = static_cast<uint8_t>(from[c]);
            }
          });
    }
  });
}

// Each number of dx is written once: it looks at the windows that it lies in, in the order in which torch adds them.
template <typename T>
void MaxPool::backward(const T* dy, const uint8_t* places, int64_t row, T* dx) const {
  const MaxPool pool = *this;
  run_here(EFCN_LOOP() {
    const auto windows = EFCN_LOOP(int dim, int64_t at, int64_t most, int64_t& first, int64_t& last) {
      const int64_t reach = pool.dilation[dim] * (pool.kernel[dim] - 1), shifted = at + pool.padding[dim];
      first = shifted <= reach ? 0 : (shifted - reach + pool.stride[dim] - 1) / pool.stride[dim];
      last = std::min(most - 1, shifted / pool.stride[dim]);
    };
    int64_t top, bottom, left, right;
    windows(0, row, pool.out_height, top, bottom);
    for (int64_t column = 0; column < pool.width; ++column) {
      windows(1, column, pool.out_width, left, right);
      in_stretches(
          pool.channels, EFCN_LOOP(int64_t first, auto size) {
            Number<T> sums[kStretch];  // rounded one by one, as torch's
            for (int64_t c = 0; c < size; ++c) sums[c] = 0;
            for (int64_t h = top; h <= bottom; ++h)
              for (int64_t w = left; w <= right; ++w) {
                const int64_t down = row + pool.padding[0] - h * pool.stride[0];
                const int64_t across = column + pool.padding[1] - w * pool.stride[1];
                if (down % pool.dilation[0] != 0 || across % pool.dilation[1] != 0) continue;
                const auto place =
                    static_cast<uint8_t>(down / pool.dilation[0] * pool.kernel[1] + across / pool.dilation[1]);
                const int64_t out = (h * pool.out_width + w) * pool.channels + first;
                for (int64_t c = 0; c < size; ++c)
                  sums[c] =
                      static_cast<T>(sums[c] + (places[out + c] == place ? static_cast<Number<T>>(dy[out + c]) : 0));
              }
            for (int64_t c = 0; c < size; ++c) dx[column * pool.channels + first + c] = static_cast<T>(sums[c]);
          });
    }
  });
}

#define EFCN_INSTANTIATE(T)                                                       \
  template void relu<T>(const T*, T*, uint64_t*, int64_t);                        \
  template void relu_backward<T>(const T*, const uint64_t*, T*, int64_t);         \
  template void MaxPool::forward<T>(const T*, int64_t, bool, T*, uint8_t*) const; \
  template void MaxPool::backward<T>(const T*, const uint8_t*, int64_t, T*) const
EFCN_INSTANTIATE(c10::BFloat16);
EFCN_INSTANTIATE(float);
EFCN_INSTANTIATE(double);

}  // namespace efcn_sparse::cpu
