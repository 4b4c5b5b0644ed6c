// The gradient of the weights: for each tap x^T dy over the pixels, which are cut into splits; then the sum of the
// splits in a fixed order.
#pragma once
#include "conv_tiles.cuh"

namespace latte {
namespace conv {

constexpr int kGradientStage = 2 * 4096;
constexpr int kGradientShared = kStages * kGradientStage;

// Walks the pixels of a split. A thread copies one chunk of two pixels of x and of dy. The threads that copy the same
// pixels share the work of finding them: each finds one, of this slab or of the three after it.
template <class T> struct PixelSlabs {
  static constexpr int kEvery = kThreads / kWideChunks<T>;  // pixels between a thread's two
  static constexpr int kAtOnce = 4;                         // slabs whose pixels are found together
  static_assert(2 * kAtOnce <= kWideChunks<T>, "a thread finds one pixel");
  const WeightGradient& a;
  const WeightWork& at;
  const Axis* axis;
  Pixel pixel, step;
  int64_t next, end, x = -1, dy = 0;
  int slab = 0;

  LATTE_DEVICE PixelSlabs(const WeightGradient& a, const WeightWork& at) : a(a), at(at), axis(a.window.axis) {
    const int64_t begin = at.split * a.per_split;
    end = begin + a.per_split < a.pixels() ? begin + a.per_split : a.pixels();
    const int one = thread() % (2 * kAtOnce);
    next = begin + thread() / kWideChunks<T> + one % 2 * kEvery + one / 2 * kWidePixels<T>;
    pixel = pixel_of(next, axis[0].out, axis[1].out, axis[2].out);
    step = pixel_of(kAtOnce * kWidePixels<T>, axis[0].out, axis[1].out, axis[2].out);
  }

  LATTE_DEVICE void find() {
    const Meeting m = meeting_of(a, at, pixel);
    // without a partner in dy the pixel reads as zero, as an infinity times zero would be NaN
    x = m.meets && next < end ? m.x : -1;
    dy = m.dy;
    advance(pixel, step, axis[0].out, axis[1].out, axis[2].out);
    next += kAtOnce * kWidePixels<T>;
  }

  LATTE_DEVICE void copy(unsigned char* stage) {
    if (slab % kAtOnce == 0) find();
    const int part = thread() % kWideChunks<T>, channel = part * kLanes<T>;
    const T *px = static_cast<const T*>(a.x.p), *pdy = static_cast<const T*>(a.dy.p);
    const bool in_x = at.row + channel < a.channels, in_dy = at.col + channel < a.cols;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int finder = thread() % 32 - part + slab % kAtOnce * 2 + i;
      const int64_t from_x = shuffle(x, finder), from_dy = shuffle(dy, finder);
      const bool meets = from_x >= 0;
      const int to = wide_chunk<T>(thread() / kWideChunks<T> + i * kEvery, part);
      copy_async(stage + to, meets && in_x ? px + from_x + at.row + channel : px, meets && in_x);
      copy_async(stage + 4096 + to, meets && in_dy ? pdy + from_dy + at.col + channel : pdy, meets && in_dy);
    }
    ++slab;
  }
};

template <class T> LATTE_KERNEL(kThreads, 2) weight_gradient_kernel(const WeightGradient a) {
  unsigned char* shared = shared_memory();
  const WeightWork at = work_of(a, block());
  PixelSlabs<T> slabs(a, at);
  const int64_t begin = at.split * a.per_split;
  const int total = static_cast<int>(ceil_div(slabs.end - begin, kWidePixels<T>));
  const int warp = thread() / 32;

  Sums<2> sums;
  clear(sums);
  for (int i = 0; i < kStages - 1; ++i) {
    if (i < total) slabs.copy(shared + i * kGradientStage);
    copy_commit();
  }
  for (int i = 0; i < total; ++i) {
    copy_wait<kStages - 2>();
    barrier();
    if (i + kStages - 1 < total) slabs.copy(shared + (i + kStages - 1) % kStages * kGradientStage);
    copy_commit();
    const unsigned char* stage = shared + i % kStages * kGradientStage;
    // tensor cores truncate when they add, which would show in sums over many thousand pixels
    Sums<2> part;
    clear(part);
    multiply_wide<T>(part, stage, stage + 4096, warp);
    add(sums, part);
  }
  copy_wait<0>();
  float* to = a.sums + ((int64_t(at.split) * a.groups + at.group) * a.taps() + at.tap) * a.channels * a.cols;
  each_sum(sums, warp, [&](int row, int col, float value) {
    row += at.row;
    col += at.col;
    if (row < a.channels && col < a.cols) write(to + int64_t(row) * a.cols + col, value);
  });
}

// dw (groups channels, cols, taps) from the splits (groups, taps, channels, cols)
template <class T> LATTE_KERNEL(256, 4) add_splits_kernel(const WeightGradient a, void* dw) {
  const int64_t size = a.size();
  for (int64_t i = int64_t(block()) * 256 + thread(); i < size; i += int64_t(blocks()) * 256) {
    float sum = 0;
    for (int split = 0; split < a.splits; ++split) sum += read(a.sums + split * size + i);
    write(static_cast<T*>(dw) + gradient_address(a, i), narrowed<T>(sum));
  }
}

}  // namespace conv
}  // namespace latte
