// Products of shared-memory slabs on tensor cores: fragments, swizzles, fp32 as three TF32 products.
#pragma once
#ifdef LATTE_MACHINE
#include LATTE_MACHINE
#else
#include "conv_machine.cuh"
#endif

namespace latte {
namespace conv {

constexpr int kStages = 4;
template <class T> constexpr int kLanes = 16 / sizeof(T);  // values in a 16-byte chunk
template <class T> struct alignas(16) Chunk {
  T value[kLanes<T>];
};
// m-fragments of 16 rows a warp: a block has 32 times as many rows. fp32 needs the registers for its halves
template <class T> constexpr int kRowFragments = sizeof(T) == 4 ? 2 : 4;
constexpr int kColFragments = kColTile / 2 / 8;

template <int MI> using Sums = float[MI][kColFragments][4];

template <int MI> LATTE_DEVICE void clear(Sums<MI>& c) {
#pragma unroll
  for (int i = 0; i < MI * kColFragments * 4; ++i) c[i / (kColFragments * 4)][i / 4 % kColFragments][i % 4] = 0;
}

template <int MI> LATTE_DEVICE void add(Sums<MI>& to, const Sums<MI>& c) {
#pragma unroll
  for (int i = 0; i < MI * kColFragments * 4; ++i)
    to[i / (kColFragments * 4)][i / 4 % kColFragments][i % 4] += c[i / (kColFragments * 4)][i / 4 % kColFragments][i % 4];
}

// x = big + small up to 2^-23 of it
LATTE_DEVICE void halve(uint32_t x, uint32_t& big, uint32_t& small) {
  big = tf32(as_float(x));
  small = tf32(as_float(x) - as_float(big));
}

// Multiplies fragments two chunks deep; b[j] holds those of columns 8 j to 8 j + 7.
template <class T, int MI>
LATTE_DEVICE void multiply(Sums<MI>& c, const uint32_t (&a)[MI][4], const uint32_t (&b)[kColFragments][2]) {
  if constexpr (sizeof(T) == 4) {
    uint32_t b_big[kColFragments][2], b_small[kColFragments][2];
#pragma unroll
    for (int j = 0; j < kColFragments * 2; ++j) halve(b[j / 2][j % 2], b_big[j / 2][j % 2], b_small[j / 2][j % 2]);
#pragma unroll
    for (int i = 0; i < MI; ++i) {
      uint32_t big[4], small[4];
#pragma unroll
      for (int r = 0; r < 4; ++r) halve(a[i][r], big[r], small[r]);
#pragma unroll
      for (int j = 0; j < kColFragments; ++j) {
        mma(T{}, c[i][j], small, b_big[j]);
        mma(T{}, c[i][j], big, b_small[j]);
        mma(T{}, c[i][j], big, b_big[j]);
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < MI; ++i)
#pragma unroll
      for (int j = 0; j < kColFragments; ++j) mma(T{}, c[i][j], a[i], b[j]);
  }
}

// Offset of a chunk in rows of 64 bytes: eight rows of one chunk, and two rows of four, lie in different banks. The
// pattern repeats every eight rows, so that one address serves rows a multiple of eight apart.
LATTE_DEVICE int deep_chunk(int row, int chunk) { return (row * 4 + (chunk ^ (row >> 1 & 3))) * 16; }

// c += a b^T: both hold a row's (column's) channels contiguous, 64 bytes a slab
template <class T, int MI>
LATTE_DEVICE void multiply_deep(Sums<MI>& c, const unsigned char* a, const unsigned char* b, int warp) {
  const int lane = thread() % 32, row = warp / 2 * 16 * MI + lane % 16;
  const int col = warp % 2 * (kColTile / 2) + lane / 16 * 8 + lane % 8;
#pragma unroll
  for (int step = 0; step < 2; ++step) {
    uint32_t fa[MI][4], fb[kColFragments / 2][4], pairs[kColFragments][2];
#pragma unroll
    for (int i = 0; i < MI; ++i) load_matrices(fa[i], a + i * 16 * 64 + deep_chunk(row, 2 * step + lane / 16));
#pragma unroll
    for (int j = 0; j < kColFragments / 2; ++j) {
      load_matrices(fb[j], b + j * 16 * 64 + deep_chunk(col, 2 * step + lane / 8 % 2));
#pragma unroll
      for (int r = 0; r < 4; ++r) pairs[2 * j + r / 2][r % 2] = fb[j][r];
    }
    multiply<T, MI>(c, fa, pairs);
  }
}

// Rows of 64 channels, one a pixel: the pixels that one fragment reads lie in different banks
template <class T> constexpr int kWideChunks = kColTile / kLanes<T>;
template <class T> constexpr int kWidePixels = 4096 / (kColTile * int(sizeof(T)));
template <class T> LATTE_DEVICE int wide_chunk(int row, int chunk) {
  const int swizzle = sizeof(T) == 4 ? row % 4 * 2 : row % 8;
  return (row * kWideChunks<T> + (chunk ^ swizzle)) * 16;
}

template <class T> LATTE_DEVICE uint32_t wide_value(const unsigned char* s, int row, int col) {
  return *reinterpret_cast<const uint32_t*>(s + wide_chunk<T>(row, col / 4) + col % 4 * 4);
}

// c += a^T b: both hold a pixel's channels contiguous, two fragments of pixels a slab
template <class T>
LATTE_DEVICE void multiply_wide(Sums<2>& c, const unsigned char* a, const unsigned char* b, int warp) {
  const int lane = thread() % 32, row = warp / 2 * 32, col = warp % 2 * 32;
#pragma unroll
  for (int step = 0; step < 2; ++step) {
    uint32_t fa[2][4], fb[kColFragments][2];
    if constexpr (sizeof(T) == 4) {
      const int k = step * 8 + lane % 4, at = lane / 4;
#pragma unroll
      for (int i = 0; i < 8; ++i)
        fa[i / 4][i % 4] = wide_value<T>(a, k + i / 2 % 2 * 4, row + i / 4 * 16 + i % 2 * 8 + at);
#pragma unroll
      for (int j = 0; j < 2 * kColFragments; ++j)
        fb[j / 2][j % 2] = wide_value<T>(b, k + j % 2 * 4, col + j / 2 * 8 + at);
    } else {
      const int k = step * 16 + lane % 8, matrix = lane / 8;
#pragma unroll
      for (int i = 0; i < 2; ++i)
        load_matrices_transposed(fa[i], a + wide_chunk<T>(k + matrix / 2 * 8, row / 8 + 2 * i + matrix % 2));
#pragma unroll
      for (int j = 0; j < kColFragments / 2; ++j) {
        uint32_t four[4];
        load_matrices_transposed(four, b + wide_chunk<T>(k + matrix % 2 * 8, col / 8 + 2 * j + matrix / 2));
#pragma unroll
        for (int r = 0; r < 4; ++r) fb[2 * j + r / 2][r % 2] = four[r];
      }
    }
    multiply<T, 2>(c, fa, fb);
  }
}

// Calls to(row, column, value) for what a thread holds of the block's tile
template <int MI, class To> LATTE_DEVICE void each_sum(const Sums<MI>& c, int warp, To to) {
  const int lane = thread() % 32;
#pragma unroll
  for (int i = 0; i < MI; ++i)
#pragma unroll
    for (int j = 0; j < kColFragments; ++j)
#pragma unroll
      for (int r = 0; r < 4; ++r)
        to((warp / 2 * MI + i) * 16 + r / 2 * 8 + lane / 4, warp % 2 * 32 + j * 8 + lane % 4 * 2 + r % 2, c[i][j][r]);
}

}  // namespace conv
}  // namespace latte
