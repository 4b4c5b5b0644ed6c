// kernel == stride with few channels: every output has one tap, and memory traffic is all that counts.
#pragma once
#include "conv_tiles.cuh"

namespace latte {
namespace conv {

constexpr int kDirectThreads = 256;
constexpr int kMostDepth = 8;
constexpr int kMostCols = 64;

LATTE_BOTH int64_t direct_blocks(const Correlation& a) {
  const Axis* axis = a.window.axis;
  const int64_t taps = int64_t(axis[0].kernel) * axis[1].kernel * axis[2].kernel;
  return ceil_div(int64_t(a.batch) * axis[0].in * axis[1].in * axis[2].in, kDirectThreads) * taps * a.groups;
}

// A thread takes one input pixel through one tap; x, the output and w (groups depth, cols, taps) are not repacked
template <class T> LATTE_KERNEL(kDirectThreads, 4) direct_kernel(const Correlation a) {
  const Axis* axis = a.window.axis;
  const int taps = axis[0].kernel * axis[1].kernel * axis[2].kernel;
  const int tap = block() % taps, group = block() / taps % a.groups;
  const int64_t i = int64_t(block() / taps / a.groups) * kDirectThreads + thread();

  float* weights = reinterpret_cast<float*>(shared_memory());  // (kMostDepth, cols), zero beyond depth
  for (int e = thread(); e < kMostDepth * a.cols; e += kDirectThreads) {
    const int64_t row = int64_t(group) * a.depth * a.cols + e;
    weights[e] = e < a.depth * a.cols ? widened(read(static_cast<const T*>(a.w) + row * taps + tap)) : 0.f;
  }
  barrier();
  if (i >= int64_t(a.batch) * axis[0].in * axis[1].in * axis[2].in) return;

  const Pixel p = pixel_of(i, axis[0].in, axis[1].in, axis[2].in);
  const int k[3] = {tap / axis[2].kernel / axis[1].kernel, tap / axis[2].kernel % axis[1].kernel, tap % axis[2].kernel};
  const int64_t ot = int64_t(p.t) * axis[0].stride - axis[0].padding + k[0];
  const int64_t oh = int64_t(p.h) * axis[1].stride - axis[1].padding + k[1];
  const int64_t ow = int64_t(p.w) * axis[2].stride - axis[2].padding + k[2];
  if (ot < 0 || ot >= axis[0].out || oh < 0 || oh >= axis[1].out || ow < 0 || ow >= axis[2].out) return;

  const T* x = static_cast<const T*>(a.in.p) + a.in.at(p.n, p.t, p.h, p.w) + group * a.in.group;
  float value[kMostDepth];
#pragma unroll
  for (int d = 0; d < kMostDepth; ++d) value[d] = d < a.depth ? widened(read(x + d * a.in.c)) : 0.f;
  T* out = static_cast<T*>(a.out.p) + a.out.at(p.n, ot, oh, ow) + group * a.out.group;
  for (int c = 0; c < a.cols; ++c) {
    float sum = a.bias ? widened(read(static_cast<const T*>(a.bias) + group * a.cols + c)) : 0.f;
#pragma unroll
    for (int d = 0; d < kMostDepth; ++d) sum += value[d] * weights[d * a.cols + c];
    write(out + c * a.out.c, narrowed<T>(sum));
  }
}

}  // namespace conv
}  // namespace latte
