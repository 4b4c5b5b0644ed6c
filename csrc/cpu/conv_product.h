// The products of a correlation: 16 pixels at a time against one matrix a tap, and the scattered store of the results.
#pragma once
#include "conv.h"
#include "gemm.h"

namespace latte {
namespace LATTE_ISA {

// The taps that one output phase meets: distance in the padded copy, place of the matrix
struct Taps {
  Scratch<int64_t> distance, matrix;
  int64_t n = 0;
  explicit Taps(int64_t most) : distance(most), matrix(most) {}
  void find(const Correlation& a, const Grid& g, const int64_t (&phase)[3], int64_t matrix_size) {
    n = 0;
    for (int64_t t = 0; t < a.kernel[0]; ++t)
      for (int64_t h = 0; h < a.kernel[1]; ++h)
        for (int64_t w = 0; w < a.kernel[2]; ++w) {
          if (!g.t.hits(phase[0], t) || !g.h.hits(phase[1], h) || !g.w.hits(phase[2], w)) continue;
          const int64_t dt = g.t.lo + g.t.offset(phase[0], t), dh = g.h.lo + g.h.offset(phase[1], h);
          distance[n] = ((dt * g.h.size + dh) * g.w.size + g.w.lo + g.w.offset(phase[2], w)) * g.pitch;
          matrix[n++] = ((t * a.kernel[1] + h) * a.kernel[2] + w) * matrix_size;
        }
  }
};

constexpr int64_t kTerms = 16, kMostCols = 64;

template <class A> LATTE_INLINE void add_to(A* to, const A* part, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes<A>) store<A>(to + i, load<A>(to + i) + load<A>(part + i));
}

// C (16 tiles x cols) = the pixels at `starts`, a_row apart, times the taps' columns from `col` on
template <class A, class P>
void multiply(const P* x, const int64_t* starts, int64_t tiles, int64_t a_row, const Taps& taps, const P* w,
              int64_t depth, [[maybe_unused]] int64_t steps, int64_t pitch_cols, int64_t col, int64_t cols, A* c) {
#if defined(LATTE_TILED)
  if constexpr (kTiled<P>) {
    const Parts parts{taps.n, taps.distance, taps.matrix};
    for (int64_t j = 0; j < cols; j += 32) {
      const P* b = w + (col + j) / 16 * steps * kTile;
      for (int64_t i = 0; i < tiles; i += 2) {
        const P *a0 = x + starts[i], *a1 = i + 1 < tiles ? x + starts[i + 1] : a0;
        A* to = c + i * 16 * cols + j;
        const bool m2 = i + 1 < tiles, n2 = j + 16 < cols;
        if (m2 && n2) tile_product<2, 2>(a0, a1, a_row, parts, steps, b, to, cols, false);
        else if (m2) tile_product<2, 1>(a0, a1, a_row, parts, steps, b, to, cols, false);
        else if (n2) tile_product<1, 2>(a0, a1, a_row, parts, steps, b, to, cols, false);
        else tile_product<1, 1>(a0, a1, a_row, parts, steps, b, to, cols, false);
      }
    }
    return;
  }
#endif
  if constexpr (!kTiled<P>) {
    // few terms a running fp32 sum, and the sums added up: one long sum has three times the error
    alignas(64) A part[16 * kMostCols];
    for (int64_t i = 0; i < tiles; ++i) {
      A* to = c + i * 16 * cols;
      int64_t terms = 0;
      std::memset(to, 0, 16 * cols * sizeof(A));
      for (int64_t k = 0; k < taps.n; ++k)
        for (int64_t d = 0; d < depth; d += kTerms) {
          const int64_t n = min(kTerms, depth - d);
          const P *lhs = x + starts[i] + taps.distance[k] + d, *rhs = w + taps.matrix[k] + d * pitch_cols + col;
          gemm<A>(16, cols, n, {lhs, a_row, 1}, rhs, pitch_cols, part, cols, terms > 0);
          terms += n;
          if (terms < kTerms && (k + 1 < taps.n || d + kTerms < depth)) continue;
          add_to(to, part, 16 * cols);
          terms = 0;
        }
    }
  }
}

// Pixels of a tile that lie side by side in one row of the output
struct Run { int64_t first, n, out, values; };

// Stores a tile of 16 pixels in each of `phases` interleaved products, `plane` apart, to the output's rows
template <class A, class O>
void store_tile(const A* c, int64_t ldc, int64_t plane, int64_t phases, const Run* runs, int64_t n_runs, int64_t cols,
                const A* bias, O* out, int64_t s_col, int64_t s_pixel, A* square, A* line) {
  if (s_col == 1) {
    for (int64_t r = 0; r < n_runs; ++r)
      for (int64_t i = 0; i < runs[r].values; ++i) {
        const A* from = c + i % phases * plane + (runs[r].first + i / phases) * ldc;
        O* to = out + runs[r].out + i * s_pixel;
        each_vec<A>(cols, [&](int64_t j, auto n) LATTE_LAMBDA {
          store<A>(to + j, load<A>(from + j, n) + load<A>(bias + j, n), n);
        });
      }
    return;
  }
  for (int64_t j = 0; j < cols; j += 16) {
    for (int64_t f = 0; f < phases; ++f) {
#if defined(LATTE_TILED)
      transpose16(c + f * plane + j, ldc * 4, square + f * 256, 64);
#else
      for (int64_t i = 0; i < 16; ++i)
        for (int64_t k = 0; k < 16; ++k) square[f * 256 + k * 16 + i] = c[f * plane + i * ldc + j + k];
#endif
    }
    for (int64_t k = 0; k < min(16, cols - j); ++k) {
      const A* from = square + k * 16;
      if (phases == 1) {
        each_vec<A>(16, [&](int64_t i, auto n) LATTE_LAMBDA {
          store<A>(line + i, load<A>(from + i, n) + bias[j + k], n);
        });
#if defined(LATTE_TILED)
      } else if (phases == 2) {
        const __m512 even = load(from) + bias[j + k], odd = load(from + 256) + bias[j + k];
        const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        store(line, _mm512_permutex2var_ps(even, low, odd));
        store(line + 16, _mm512_permutex2var_ps(even, _mm512_add_epi32(low, _mm512_set1_epi32(8)), odd));
#endif
      } else {
        for (int64_t i = 0; i < 16; ++i)
          for (int64_t f = 0; f < phases; ++f) line[i * phases + f] = from[f * 256 + i] + bias[j + k];
      }
      for (int64_t r = 0; r < n_runs; ++r) {
        O* to = out + runs[r].out + (j + k) * s_col;
        const A* values = line + runs[r].first * phases;
        if (s_pixel == 1) {
          each_vec<A>(runs[r].values, [&](int64_t i, auto n) LATTE_LAMBDA {
            store<A>(to + i, load<A>(values + i, n), n);
          });
        } else {
          for (int64_t i = 0; i < runs[r].values; ++i) store<A>(to + i * s_pixel, load<A>(values + i, 1), 1);
        }
      }
    }
  }
}

}  // namespace LATTE_ISA
}  // namespace latte
