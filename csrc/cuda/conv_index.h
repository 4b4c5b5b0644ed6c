// Index arithmetic of the CUDA kernels of conv_transpose3d: phases, taps, pixels, addresses. No CUDA here, so that a
// host compiler takes it too.
#pragma once
#include <cstdint>

#if defined(__CUDACC__)
#define LATTE_BOTH __host__ __device__ __forceinline__
#else
#define LATTE_BOTH inline
#endif

namespace latte {
namespace conv {

constexpr int kColTile = 64;   // output channels a block
constexpr int kThreads = 128;  // four warps, two by two

// Along one axis output o reads input i through tap k where, transposed, o = i stride - padding + k dilation, and
// otherwise i = o stride - padding + k dilation.
struct Axis {
  int in, out, kernel, stride, padding, dilation;
};

struct Window {
  Axis axis[3];
  int transposed, replicate;
};

// Outputs f, f + steps, ... of one axis meet the same taps: tap first + j every, whose input for the m-th output is
// m walk + offset + j shift.
struct Phase {
  int outputs, steps, taps, first, every, walk, offset, shift;
};

LATTE_BOTH int phases(const Axis& a, bool transposed) {
  return !transposed ? 1 : a.stride < a.out ? a.stride : a.out;
}

// 32 bits suffice: windows that reach 2^30 or further are refused before a launch
LATTE_BOTH Phase phase_of(const Axis& a, bool transposed, int f) {
  if (!transposed) return {a.out, 1, a.kernel, 0, 1, a.stride, -a.padding, a.dilation};
  Phase p{(a.out - f + a.stride - 1) / a.stride, a.stride, 0, 0, 1, 1, 0, 0};
  while (p.first < a.kernel && (f + a.padding - p.first * a.dilation) % a.stride) ++p.first;
  if (p.first == a.kernel) return p;
  while (p.first + p.every < a.kernel && p.every * a.dilation % a.stride) ++p.every;
  p.taps = (a.kernel - p.first + p.every - 1) / p.every;
  p.offset = (f + a.padding - p.first * a.dilation) / a.stride;
  p.shift = -(p.every * a.dilation / a.stride);
  return p;
}

// The nearest input where edges repeat, else -1 outside
LATTE_BOTH int inside(int i, int n, bool replicate) {
  if (replicate) return i < 0 ? 0 : i < n ? i : n - 1;
  return i >= 0 && i < n ? i : -1;
}

struct Pixel {
  int n, t, h, w;
};

template <class I> LATTE_BOTH Pixel split_pixel(I i, I t, I h, I w) {
  const I row = i / w, plane = row / h;
  return {static_cast<int>(plane / t), static_cast<int>(plane % t), static_cast<int>(row % h), static_cast<int>(i % w)};
}

// a 64-bit division is a hundred instructions
LATTE_BOTH Pixel pixel_of(int64_t i, int t, int h, int w) {
  if (i <= INT32_MAX) return split_pixel<uint32_t>(static_cast<uint32_t>(i), t, h, w);
  return split_pixel<int64_t>(i, t, h, w);
}

// p + by, both in the mixed base (t, h, w): a step without a division
LATTE_BOTH void advance(Pixel& p, const Pixel& by, int t, int h, int w) {
  p.w += by.w;
  int carry = p.w >= w;
  p.w -= carry ? w : 0;
  p.h += by.h + carry;
  carry = p.h >= h;
  p.h -= carry ? h : 0;
  p.t += by.t + carry;
  carry = p.t >= t;
  p.t -= carry ? t : 0;
  p.n += by.n + carry;
}

// A volume of channels: strides in elements; `group` from one group's first channel to the next one's
struct Volume {
  void* p;
  int64_t n, group, c, t, h, w;
  LATTE_BOTH int64_t at(int64_t in, int64_t it, int64_t ih, int64_t iw) const {
    return in * n + it * t + ih * h + iw * w;
  }
};

// Output phases, or the gradient of the input: sums over taps and `depth` channels. The input's channels are contiguous
// and padded to 16 bytes, the weights are (groups, taps, cols, depth).
struct Correlation {
  Window window;
  Volume in, out;
  const void *w, *bias;
  int batch, groups, depth, cols;
  int dtype, wide;  // wide: the output is fp32
  int vector;       // the output's channels can be stored 16 bytes at a time
  int row_tiles;    // of the first phase, which has the most rows
};

LATTE_BOTH int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

LATTE_BOTH int64_t most_rows(const Correlation& a) {
  int64_t rows = a.batch;
  for (int i = 0; i < 3; ++i) rows *= phase_of(a.window.axis[i], a.window.transposed, 0).outputs;
  return rows;
}

LATTE_BOTH int64_t blocks_of(const Correlation& a) {
  int64_t blocks = a.groups * ceil_div(a.cols, kColTile) * a.row_tiles;
  for (int i = 0; i < 3; ++i) blocks *= phases(a.window.axis[i], a.window.transposed);
  return blocks;
}

// Removes and returns the lowest digit, in base n, of a block's number
LATTE_BOTH int take_digit(int& block, int n) {
  const int digit = block % n;
  block /= n;
  return digit;
}

// What one block computes. Phases of the same pixels run side by side: they share inputs, and outputs interleave.
struct Work {
  int64_t row;
  int col, group, f[3];
};

LATTE_BOTH Work work_of(const Correlation& a, int row_tile, int block) {
  Work to{};
  to.col = take_digit(block, static_cast<int>(ceil_div(a.cols, kColTile))) * kColTile;
  for (int i = 2; i >= 0; --i) to.f[i] = take_digit(block, phases(a.window.axis[i], a.window.transposed));
  to.row = int64_t(take_digit(block, a.row_tiles)) * row_tile;
  to.group = block;
  return to;
}

// Where the j-th tap of a phase's pixel m reads, -1 outside
LATTE_BOTH int64_t read_address(const Correlation& a, const Phase* p, const Pixel& m, const int* j, int group) {
  const Axis* axis = a.window.axis;
  const int t = inside(m.t * p[0].walk + p[0].offset + j[0] * p[0].shift, axis[0].in, a.window.replicate);
  const int h = inside(m.h * p[1].walk + p[1].offset + j[1] * p[1].shift, axis[1].in, a.window.replicate);
  const int w = inside(m.w * p[2].walk + p[2].offset + j[2] * p[2].shift, axis[2].in, a.window.replicate);
  return (t | h | w) < 0 ? -1 : a.in.at(m.n, t, h, w) + group * a.in.group;
}

// Where the j-th tap's matrix starts
LATTE_BOTH int64_t weight_address(const Correlation& a, const Phase* p, const int* j, int group) {
  int64_t tap = group;
  for (int i = 0; i < 3; ++i) tap = tap * a.window.axis[i].kernel + p[i].first + j[i] * p[i].every;
  return tap * a.cols * a.depth;
}

LATTE_BOTH int64_t write_address(const Correlation& a, const Phase* p, const int* f, const Pixel& m, int group) {
  return a.out.at(m.n, f[0] + m.t * p[0].steps, f[1] + m.h * p[1].steps, f[2] + m.w * p[2].steps) +
         group * a.out.group;
}

// dw (groups, taps, channels, cols) of each split of the pixels: the sum over pixels i of x, or of x with its edges
// repeated, of x[i]^T dy[o], where o = i stride - padding + k dilation. The window is not transposed: its input is dy,
// its output the extended x.
struct WeightGradient {
  Window window;
  Volume x, dy;
  float* sums;
  int x_size[3], before[3];
  int batch, groups, channels, cols;
  int64_t per_split;  // pixels
  int splits, dtype;
  LATTE_BOTH int taps() const { return window.axis[0].kernel * window.axis[1].kernel * window.axis[2].kernel; }
  LATTE_BOTH int64_t pixels() const {
    return int64_t(batch) * window.axis[0].out * window.axis[1].out * window.axis[2].out;
  }
  LATTE_BOTH int64_t size() const { return int64_t(groups) * taps() * channels * cols; }
  LATTE_BOTH int64_t blocks() const {
    return int64_t(splits) * groups * taps() * ceil_div(channels, kColTile) * ceil_div(cols, kColTile);
  }
};

struct WeightWork {
  int row, col, tap, group, split, k[3];
};

LATTE_BOTH WeightWork work_of(const WeightGradient& a, int block) {
  WeightWork to{};
  to.col = take_digit(block, static_cast<int>(ceil_div(a.cols, kColTile))) * kColTile;
  to.row = take_digit(block, static_cast<int>(ceil_div(a.channels, kColTile))) * kColTile;
  to.tap = take_digit(block, a.taps());
  to.group = take_digit(block, a.groups);
  to.split = block;
  int tap = to.tap;
  for (int i = 2; i >= 0; --i) to.k[i] = take_digit(tap, a.window.axis[i].kernel);
  return to;
}

// Whether pixel i of the extended x meets a pixel of dy through the block's tap, and where both are
struct Meeting {
  bool meets;
  int64_t x, dy;
};

LATTE_BOTH int met(const Axis& a, int i, int k) {
  const int64_t o = int64_t(i) * a.stride - a.padding + int64_t(k) * a.dilation;
  return o >= 0 && o < a.in ? static_cast<int>(o) : -1;
}

LATTE_BOTH Meeting meeting_of(const WeightGradient& a, const WeightWork& at, const Pixel& i) {
  const Axis* axis = a.window.axis;
  const int t = met(axis[0], i.t, at.k[0]), h = met(axis[1], i.h, at.k[1]), w = met(axis[2], i.w, at.k[2]);
  const int xt = inside(i.t - a.before[0], a.x_size[0], true), xh = inside(i.h - a.before[1], a.x_size[1], true);
  const int xw = inside(i.w - a.before[2], a.x_size[2], true);
  return {(t | h | w) >= 0, a.x.at(i.n, xt, xh, xw) + at.group * a.x.group,
          a.dy.at(i.n, t, h, w) + at.group * a.dy.group};
}

// Where entry i of (groups, taps, channels, cols) lies in dw (groups channels, cols, taps)
LATTE_BOTH int64_t gradient_address(const WeightGradient& a, int64_t i) {
  const int64_t col = i % a.cols, channel = i / a.cols % a.channels, matrix = i / a.cols / a.channels;
  const int64_t row = matrix / a.taps() * a.channels + channel;
  return (row * a.cols + col) * a.taps() + matrix % a.taps();
}

// Copies `from` (batch, size, groups, depth) to the same order, contiguous, its last axis padded to `padded`
struct Pack {
  Volume from;
  void* to;
  int batch, groups, depth, padded, size[3], item;
  LATTE_BOTH int64_t pixels() const { return int64_t(size[0]) * size[1] * size[2]; }
};

struct PackWork {
  int64_t pixel;
  int batch, group, channel;
};

LATTE_BOTH int64_t blocks_of(const Pack& a, int side) {
  return int64_t(a.batch) * a.groups * ceil_div(a.pixels(), side) * ceil_div(a.padded, side);
}

LATTE_BOTH PackWork work_of(const Pack& a, int side, int block) {
  PackWork to{};
  to.channel = take_digit(block, static_cast<int>(ceil_div(a.padded, side))) * side;
  to.pixel = int64_t(take_digit(block, static_cast<int>(ceil_div(a.pixels(), side)))) * side;
  to.group = take_digit(block, a.groups);
  to.batch = block;
  return to;
}

// Where a channel is read, -1 where the copy is zero
LATTE_BOTH int64_t read_address(const Pack& a, const PackWork& at, int64_t pixel, int channel) {
  if (pixel >= a.pixels() || channel >= a.depth) return -1;
  const Pixel p = pixel_of(pixel, a.size[0], a.size[1], a.size[2]);
  return a.from.at(at.batch, p.t, p.h, p.w) + at.group * a.from.group + channel * a.from.c;
}

// Where a channel is written, -1 past the end
LATTE_BOTH int64_t write_address(const Pack& a, const PackWork& at, int64_t pixel, int channel) {
  if (pixel >= a.pixels() || channel >= a.padded) return -1;
  return ((at.batch * a.pixels() + pixel) * a.groups + at.group) * a.padded + channel;
}

}  // namespace conv
}  // namespace latte
