// The implicit GEMM of conv_transpose3d: rows are one phase's output pixels, columns output channels, and the sum runs
// over the taps that reach the phase and the input's channels.
#pragma once
#include "conv_cuda_tiles.cuh"

namespace latte {
namespace conv {

template <class T> constexpr int kRowTile = 32 * kRowFragments<T>;
constexpr int kPitch = kColTile + 1;  // of the finished tile, read along either side
template <class T> constexpr int kStageBytes = (kRowTile<T> + kColTile) * 64;
template <class T> constexpr int kTileBytes = kRowTile<T> * (kPitch * 4 + 8);
template <class T>
constexpr int kCorrelateShared = kStages * kStageBytes<T> > kTileBytes<T> ? kStages * kStageBytes<T> : kTileBytes<T>;

// Walks taps and, in each, 64 bytes of channels. A thread copies one chunk of every 32nd row and column.
template <class T> struct Slabs {
  static constexpr int kRows = kRowFragments<T>;
  const Correlation& a;
  Phase phase[3];
  Pixel pixel[kRows];  // n < 0 beyond the last row
  int64_t from[kRows], weights = 0;
  int group, col, j[3] = {}, slab = 0, slabs, total;

  LATTE_DEVICE Slabs(const Correlation& a, const Work& at) : a(a), group(at.group), col(at.col) {
    for (int i = 0; i < 3; ++i) phase[i] = phase_of(a.window.axis[i], a.window.transposed, at.f[i]);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int64_t row = at.row + thread() / 4 + 32 * i;
      pixel[i] = row < rows() ? pixel_of(row, phase[0].outputs, phase[1].outputs, phase[2].outputs) : Pixel{-1, 0, 0, 0};
    }
    slabs = static_cast<int>(ceil_div(a.depth, 4 * kLanes<T>));
    total = slabs * phase[0].taps * phase[1].taps * phase[2].taps;
  }

  LATTE_DEVICE int64_t rows() const {
    return int64_t(a.batch) * phase[0].outputs * phase[1].outputs * phase[2].outputs;
  }

  LATTE_DEVICE void find_tap() {
#pragma unroll
    for (int i = 0; i < kRows; ++i) from[i] = pixel[i].n < 0 ? -1 : read_address(a, phase, pixel[i], j, group);
    weights = weight_address(a, phase, j, group);
  }

  LATTE_DEVICE void copy(unsigned char* stage) {
    if (slab == 0) find_tap();
    const int part = thread() % 4, channel = (slab * 4 + part) * kLanes<T>;
    const T *x = static_cast<const T*>(a.in.p), *w = static_cast<const T*>(a.w);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const bool valid = from[i] >= 0 && channel < a.depth;
      copy_async(stage + deep_chunk(thread() / 4 + 32 * i, part), valid ? x + from[i] + channel : x, valid);
    }
    stage += kRowTile<T> * 64;
#pragma unroll
    for (int i = 0; i < kColTile / 32; ++i) {
      const int c = thread() / 4 + 32 * i;
      const bool valid = col + c < a.cols && channel < a.depth;
      const T* p = valid ? w + weights + int64_t(col + c) * a.depth + channel : w;
      copy_async(stage + deep_chunk(c, part), p, valid);
    }
    if (++slab < slabs) return;
    slab = 0;
    if (++j[2] < phase[2].taps) return;
    j[2] = 0;
    if (++j[1] < phase[1].taps) return;
    j[1] = 0;
    ++j[0];
  }
};

// The finished tile from shared memory to the output: `to` is a row's address, -1 beyond the last
template <class T, class O>
LATTE_DEVICE void store_tile(const Correlation& a, const Work& at, const float* tile, const int64_t* to) {
  O* out = static_cast<O*>(a.out.p) + at.col * a.out.c;
  const int cols = a.cols - at.col < kColTile ? a.cols - at.col : kColTile;
  if (a.vector) {
    constexpr int kParts = kColTile / kLanes<O>;
    for (int i = thread(); i < kRowTile<T> * kParts; i += kThreads) {
      const int row = i / kParts, c = i % kParts * kLanes<O>;
      if (to[row] < 0 || c >= cols) continue;
      Chunk<O> chunk;
#pragma unroll
      for (int k = 0; k < kLanes<O>; ++k) chunk.value[k] = narrowed<O>(tile[row * kPitch + c + k]);
      write(reinterpret_cast<Chunk<O>*>(out + to[row] + c), chunk);
    }
    return;
  }
  const bool along_rows = a.out.c != 1;
  for (int i = thread(); i < kRowTile<T> * kColTile; i += kThreads) {
    const int row = along_rows ? i % kRowTile<T> : i / kColTile, c = along_rows ? i / kRowTile<T> : i % kColTile;
    if (to[row] >= 0 && c < cols) write(out + to[row] + c * a.out.c, narrowed<O>(tile[row * kPitch + c]));
  }
}

template <class T> LATTE_KERNEL(kThreads) correlate_kernel(const Correlation a) {
  constexpr int MI = kRowFragments<T>;
  unsigned char* shared = shared_memory();
  const Work at = work_of(a, kRowTile<T>, block());
  Slabs<T> slabs(a, at);
  if (at.row >= slabs.rows()) return;  // a phase with fewer outputs than the first
  const int warp = thread() / 32;

  Sums<MI> sums;
  clear(sums);
  for (int i = 0; i < kStages - 1; ++i) {
    if (i < slabs.total) slabs.copy(shared + i * kStageBytes<T>);
    copy_commit();
  }
  for (int i = 0; i < slabs.total; ++i) {
    copy_wait<kStages - 2>();
    barrier();
    if (i + kStages - 1 < slabs.total) slabs.copy(shared + (i + kStages - 1) % kStages * kStageBytes<T>);
    copy_commit();
    const unsigned char* stage = shared + i % kStages * kStageBytes<T>;
    if constexpr (sizeof(T) == 4) {
      // tensor cores cut what they add off, which a long sum would show in fp32
      Sums<MI> part;
      clear(part);
      multiply_deep<T>(part, stage, stage + kRowTile<T> * 64, warp);
      add(sums, part);
    } else {
      multiply_deep<T>(sums, stage, stage + kRowTile<T> * 64, warp);
    }
  }
  copy_wait<0>();
  barrier();

  float* tile = reinterpret_cast<float*>(shared);
  int64_t* to = reinterpret_cast<int64_t*>(shared + kRowTile<T> * kPitch * 4);
  const T* bias = static_cast<const T*>(a.bias);
  if (thread() < kRowTile<T>) {
    const int64_t row = at.row + thread();
    const Phase* p = slabs.phase;
    const Pixel m = pixel_of(row, p[0].outputs, p[1].outputs, p[2].outputs);
    to[thread()] = row < slabs.rows() ? write_address(a, p, at.f, m, at.group) : -1;
  }
  each_sum(sums, warp, [&](int row, int c, float value) {
    const int channel = at.col + c;
    if (bias && channel < a.cols) value += widened(read(bias + int64_t(at.group) * a.cols + channel));
    tile[row * kPitch + c] = value;
  });
  barrier();
  if (a.wide) store_tile<T, float>(a, at, tile, to);
  else store_tile<T, T>(a, at, tile, to);
}

}  // namespace conv
}  // namespace latte
