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

// `n` terms in a row of one tap: where their pixels and their rows of a panel begin
struct Segment { int64_t x, w, n; };

// The segments of a phase, in chunks that are summed up in registers. A sum of N terms in chunks of T has an error of
// about eps sqrt(N (T + N / T) / 2): least where T is sqrt(N), whatever that is.
struct Chunks {
  Scratch<Segment> segments;
  Scratch<int64_t> ends;
  int64_t n = 0;
  explicit Chunks(int64_t most) : segments(most), ends(most) {}
  static int64_t most(int64_t taps, int64_t depth) { return taps * ((depth + kTerms - 1) / kTerms); }
  void cut(const Taps& taps, int64_t depth) {
    const int64_t total = taps.n * depth, terms = total >= 1024 ? 64 : total >= 512 ? 32 : kTerms;
    int64_t held = 0, count = 0;
    n = 0;
    for (int64_t k = 0; k < taps.n; ++k)
      for (int64_t d = 0; d < depth; d += terms) {
        const int64_t more = min(terms, depth - d);
        if (held && held + more > terms) ends[n++] = count, held = 0;
        segments[count++] = {taps.distance[k] + d, taps.matrix[k] + d * 16, more};
        held += more;
      }
    if (held) ends[n++] = count;
  }
};

// Sums kRows pixels times kVecs vectors of columns over segments, b[j] being where the panel of vector j begins
template <class A, int kRows, int kVecs>
LATTE_INLINE void sum_tile(const A* x, int64_t a_row, const A* const (&b)[kTileVecs], const Segment* from,
                           const Segment* end, A* c, int64_t ldc, bool add) {
  Vec<A> acc[kRows][kVecs];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 3
    for (int j = 0; j < kVecs; ++j) acc[i][j] = Vec<A>{};
  for (; from != end; ++from) {
    const A* lhs = x + from->x;
    for (int64_t k = 0; k < from->n; ++k) {
      Vec<A> rhs[kVecs];
#pragma GCC unroll 3
      for (int j = 0; j < kVecs; ++j) rhs[j] = load<A>(b[j] + from->w + k * 16);
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) {
        const Vec<A> value = splat<A>(lhs[i * a_row + k]);
#pragma GCC unroll 3
        for (int j = 0; j < kVecs; ++j) acc[i][j] = fma(value, rhs[j], acc[i][j]);
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 3
    for (int j = 0; j < kVecs; ++j) {
      A* to = c + i * ldc + j * kLanes<A>;
      store<A>(to, add ? load<A>(to) + acc[i][j] : acc[i][j]);
    }
}

#if defined(LATTE_ISA_AVX2)
constexpr int kPixelRows = 6;  // 12 sums, two vectors and a pixel's value in 16 registers
#else
constexpr int kPixelRows = kTileRows;
#endif

// 16 pixels times kVecs vectors of columns
template <class A, int kVecs>
LATTE_INLINE void sum_pixels(const A* x, int64_t a_row, const A* const (&b)[kTileVecs], const Segment* from,
                             const Segment* end, A* c, int64_t ldc, bool add) {
  constexpr int kLast = 16 % kPixelRows;
  for (int i = 0; i + kPixelRows <= 16; i += kPixelRows)
    sum_tile<A, kPixelRows, kVecs>(x + i * a_row, a_row, b, from, end, c + i * ldc, ldc, add);
  if constexpr (kLast > 0) {
    constexpr int i = 16 - kLast;
    sum_tile<A, kLast, kVecs>(x + i * a_row, a_row, b, from, end, c + i * ldc, ldc, add);
  }
}

// C (16 tiles x cols) = the pixels at `starts`, a_row apart, times the taps' columns from `col` on
template <class A, class P>
void multiply(const P* x, const int64_t* starts, int64_t tiles, int64_t a_row, const Taps& taps, const P* w,
              int64_t depth, [[maybe_unused]] int64_t steps, int64_t col, int64_t cols, A* c,
              [[maybe_unused]] Chunks& chunks) {
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
    constexpr int L = kLanes<A>;
    chunks.cut(taps, depth);
    if (!chunks.n) std::memset(c, 0, tiles * 16 * cols * sizeof(A));  // a phase that no tap meets
    // a chunk's panels stay in the first cache while all tiles meet them
    for (int64_t k = 0; k < chunks.n; ++k) {
      const Segment *from = chunks.segments + (k ? chunks.ends[k - 1] : 0), *end = chunks.segments + chunks.ends[k];
      for (int64_t i = 0; i < tiles; ++i)
        for (int64_t j = 0; j < cols;) {
          const A* b[kTileVecs];
          for (int v = 0; v < kTileVecs; ++v) {
            const int64_t at = col + j + v * L;
            b[v] = w + at / 16 * 16 * depth + at % 16;
          }
          A* to = c + i * 16 * cols + j;
          const bool wide = j + kTileVecs * L <= cols;
          if (wide) sum_pixels<A, kTileVecs>(x + starts[i], a_row, b, from, end, to, cols, k > 0);
          else sum_pixels<A, 1>(x + starts[i], a_row, b, from, end, to, cols, k > 0);
          j += wide ? kTileVecs * L : L;
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
