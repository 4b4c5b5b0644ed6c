// kernel == stride, few channels, and stride 1 along the width (Latte's own case): every output is one short dot
// product, so the pixels are read where they lie, and vectors run along them.
#pragma once
#include "conv.h"

namespace latte {
namespace LATTE_ISA {

inline bool is_direct(const Correlation& a) {
  bool fits = a.transposed && a.depth <= 32 && a.kernel[2] == 1 && a.in.stride[4] == 1 && a.out.stride[4] == 1;
  for (int i = 0; i < 3; ++i)
    fits = fits && a.kernel[i] == a.stride[i] && a.padding[i] == 0 && a.out_size[i] == a.in_size[i] * a.stride[i] &&
           (a.dilation[i] == 1 || a.kernel[i] == 1);
  return fits;
}

// Computes kCols rows of the output, `pixels` long, from `depth` rows of the input
template <int kCols, class A, class T, class O>
LATTE_INLINE void dot_rows(const T* x, int64_t s_depth, int64_t depth, const A* w, const A* bias,
                           O* out, int64_t s_col, int64_t pixels) {
  each_vec<A>(pixels, [&](int64_t i, auto n) LATTE_LAMBDA {
    Vec<A> acc[kCols];
#pragma GCC unroll 8
    for (int c = 0; c < kCols; ++c) acc[c] = splat<A>(bias[c]);
    for (int64_t d = 0; d < depth; ++d) {
      const Vec<A> v = load<A>(x + d * s_depth + i, n);
#pragma GCC unroll 8
      for (int c = 0; c < kCols; ++c) acc[c] = fma(v, splat<A>(w[d * 8 + c]), acc[c]);
    }
#pragma GCC unroll 8
    for (int c = 0; c < kCols; ++c) store<A>(out + c * s_col + i, acc[c], n);
  });
}

template <class A, class T, class O> void direct(const Correlation& a) {
  const bool merged = a.kernel[1] == 1 && a.in.stride[3] == a.in_size[2] && a.out.stride[3] == a.in_size[2];
  const int64_t rows = merged ? 1 : a.in_size[1], pixels = merged ? a.in_size[1] * a.in_size[2] : a.in_size[2];
  const int64_t taps = a.kernel[0] * a.kernel[1], blocks = (a.cols + 7) / 8, matrix = a.depth * 8;
  Scratch<A> w(a.groups * taps * blocks * matrix), bias(a.groups * blocks * 8);
  for (int64_t g = 0; g < a.groups; ++g)
    for (int64_t c = 0; c < blocks * 8; ++c) {
      const bool real = c < a.cols;
      bias[g * blocks * 8 + c] = real && a.bias ? widened(static_cast<const T*>(a.bias)[g * a.cols + c]) : A(0);
      for (int64_t k = 0; k < taps; ++k)
        for (int64_t d = 0; d < a.depth; ++d) {
          const T* from = static_cast<const T*>(a.w) + g * a.w_stride[0] + d * a.w_stride[1] + c * a.w_stride[2] + k;
          w[((g * taps + k) * blocks + c / 8) * matrix + d * 8 + c % 8] = real ? widened(*from) : A(0);
        }
    }
  const int64_t *si = a.in.stride, *so = a.out.stride;
  split(a.batch * a.groups * a.in_size[0] * rows * taps, a.threads, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t k = item % taps, h = item / taps % rows, outer = item / taps / rows, t = outer % a.in_size[0];
      const int64_t g = outer / a.in_size[0] % a.groups, n = outer / a.in_size[0] / a.groups;
      const T* x = static_cast<const T*>(a.in.p) + n * si[0] + g * a.depth * si[1] + t * si[2] + h * si[3];
      O* out = static_cast<O*>(a.out.p) + n * so[0] + g * a.cols * so[1] + (t * a.kernel[0] + k / a.kernel[1]) * so[2] +
               (h * a.kernel[1] + k % a.kernel[1]) * so[3];
      for (int64_t c = 0; c < a.cols; c += 8) {
        const A *m = w + ((g * taps + k) * blocks + c / 8) * matrix, *b = bias + g * blocks * 8 + c;
        if (c + 8 <= a.cols) {
          dot_rows<8>(x, si[1], a.depth, m, b, out + c * so[1], so[1], pixels);
          continue;
        }
        for (int64_t j = c; j < a.cols; ++j)
          dot_rows<1>(x, si[1], a.depth, m + j - c, b + j - c, out + j * so[1], so[1], pixels);
      }
    }
  });
}

}  // namespace LATTE_ISA
}  // namespace latte
