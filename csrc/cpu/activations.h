// ReLU and max-pooling whose backward passes read a bit for each number, and a byte for each maximum.
#pragma once

#include <cstdint>

namespace efcn_sparse::cpu {

constexpr int64_t kWord = 64;  // numbers that a word of bits tells of

// y = max(x, 0), NaN included; a bit of `kept` is set where the gradient passes. y may be x.
template <typename T>
void relu(const T* x, T* y, uint64_t* kept, int64_t count);

// dx = dy where the bit is set, else 0. dx may be dy.
template <typename T>
void relu_backward(const T* dy, const uint64_t* kept, T* dx, int64_t count);

constexpr uint8_t kNoPlace = 255;  // of a maximum that is no number of its window; windows have as many places at most

// Images [height, width, channels] and their maxima [out_height, out_width, channels].
struct MaxPool {
  int64_t height, width, channels, out_height, out_width;
  int64_t kernel[2], stride[2], padding[2], dilation[2];

  // Row `row` of the maxima, of x or, if it `rectifies`, of ReLU(x), and which place of its window each comes from: the
  // first of equal ones, the last NaN, kNoPlace where ReLU left nothing or the window lies in the padding.
  template <typename T>
  void forward(const T* x, int64_t row, bool rectifies, T* y, uint8_t* places) const;

  // Row `row` of dx, the gradient of an image.
  template <typename T>
  void backward(const T* dy, const uint8_t* places, int64_t row, T* dx) const;
};

}  // namespace efcn_sparse::cpu
