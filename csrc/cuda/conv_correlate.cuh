// The implicit GEMM of conv_transpose3d: rows are one phase's output pixels, columns output channels, and the sum runs
// over the taps that reach the phase and the input's channels.
#pragma once
#include "conv_tiles.cuh"

namespace latte {
namespace conv {

template <class T> constexpr int kRowTile = 32 * kRowFragments<T>;
constexpr int kPitch = kColTile + 1;  // of the finished tile, read along either side
template <class T> constexpr int kStageBytes = (kRowTile<T> + kColTile) * 64;
template <class T> constexpr int kPipelineBytes = kStages * kStageBytes<T>;
// Values read once a tap, kept in shared memory: in registers they would cost each multiprocessor a block
template <class T> struct Places {
  Pixel pixel[kRowTile<T>];  // n < 0 beyond the last row
  Phase phase[3];
  Work work;
  float bias[kColTile];
};
template <class T> constexpr int kCorrelateShared = kPipelineBytes<T> + int(sizeof(Places<T>));
static_assert(kRowTile<float> * (kPitch * 4 + 8) <= kPipelineBytes<float>, "the finished tile takes the stages' place");
static_assert(kRowTile<bf16> * (kPitch * 4 + 8) <= kPipelineBytes<bf16>, "the finished tile takes the stages' place");

LATTE_DEVICE int64_t rows_of(const Correlation& a, const Phase* p) {
  return int64_t(a.batch) * p[0].outputs * p[1].outputs * p[2].outputs;
}

// Walks taps and, in each, 64 bytes of channels. A thread copies one chunk of every 32nd row and column.
template <class T> struct Slabs {
  static constexpr int kRows = kRowFragments<T>;
  const Correlation& a;
  const Places<T>& places;
  int64_t from[kRows], weights = 0;
  int group, col, j[3] = {}, slab = 0, slabs, total;

  LATTE_DEVICE Slabs(const Correlation& a, const Work& at, const Places<T>& places)
      : a(a), places(places), group(at.group), col(at.col) {
    slabs = static_cast<int>(ceil_div(a.depth, 4 * kLanes<T>));
    total = slabs * places.phase[0].taps * places.phase[1].taps * places.phase[2].taps;
  }

  // Four neighbouring threads copy from the same rows: each finds the address of one of their pixels
  LATTE_DEVICE void find_tap() {
    const int part = thread() % 4;
    int64_t mine = -1;
    if (part < kRows) {
      const Pixel m = places.pixel[thread() / 4 + 32 * part];
      if (m.n >= 0) mine = read_address(a, places.phase, m, j, group);
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) from[i] = shuffle(mine, thread() % 32 - part + i);
    weights = weight_address(a, places.phase, j, group);
  }

  LATTE_DEVICE void copy(unsigned char* stage) {
    if (slab == 0) find_tap();
    const int part = thread() % 4, channel = (slab * 4 + part) * kLanes<T>;
    const T *x = static_cast<const T*>(a.in.p), *w = static_cast<const T*>(a.w);
    unsigned char* to = stage + deep_chunk(thread() / 4, part);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const bool valid = from[i] >= 0 && channel < a.depth;
      copy_async(to + i * 32 * 64, valid ? x + from[i] + channel : x, valid);
    }
    to += kRowTile<T> * 64;
#pragma unroll
    for (int i = 0; i < kColTile / 32; ++i) {
      const int c = thread() / 4 + 32 * i;
      const bool valid = col + c < a.cols && channel < a.depth;
      const T* p = valid ? w + weights + int64_t(col + c) * a.depth + channel : w;
      copy_async(to + i * 32 * 64, p, valid);
    }
    if (++slab < slabs) return;
    slab = 0;
    if (++j[2] < places.phase[2].taps) return;
    j[2] = 0;
    if (++j[1] < places.phase[1].taps) return;
    j[1] = 0;
    ++j[0];
  }
};

// Stores the finished tile from shared memory to the output: `to` is a row's address, -1 beyond the last
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

template <class T> LATTE_KERNEL(kThreads, 3) correlate_kernel(const Correlation a) {
  constexpr int MI = kRowFragments<T>;
  unsigned char* shared = shared_memory();
  Places<T>& places = *reinterpret_cast<Places<T>*>(shared + kPipelineBytes<T>);
  const Work& at = places.work;
  const Phase* p = places.phase;
  if (thread() == 0) places.work = work_of(a, kRowTile<T>, block());
  barrier();
  if (thread() < 3) places.phase[thread()] = phase_of(a.window.axis[thread()], a.window.transposed, at.f[thread()]);
  barrier();
  if (at.row >= rows_of(a, p)) return;  // a phase with fewer outputs than the first
  if (thread() < kRowTile<T>) {
    const int64_t row = at.row + thread();
    places.pixel[thread()] =
        row < rows_of(a, p) ? pixel_of(row, p[0].outputs, p[1].outputs, p[2].outputs) : Pixel{-1, 0, 0, 0};
  }
  if (thread() < kColTile) {
    const bool real = a.bias && at.col + thread() < a.cols;
    const T* bias = static_cast<const T*>(a.bias) + int64_t(at.group) * a.cols + at.col + thread();
    places.bias[thread()] = real ? widened(read(bias)) : 0.f;
  }
  barrier();
  Slabs<T> slabs(a, at, places);
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
      // tensor cores truncate when they add, which would show in a long fp32 sum
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
  if (thread() < kRowTile<T>) {
    const Pixel m = places.pixel[thread()];
    to[thread()] = m.n < 0 ? -1 : write_address(a, p, at.f, m, at.group);
  }
  each_sum(sums, warp, [&](int row, int c, float value) { tile[row * kPitch + c] = value + places.bias[c]; });
  barrier();
  if (a.wide) store_tile<T, float>(a, at, tile, to);
  else store_tile<T, T>(a, at, tile, to);
}

}  // namespace conv
}  // namespace latte
