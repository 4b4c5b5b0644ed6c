// bf16 products on vectors of pairs (AVX512-BF16), from the operands that AMX takes.
#pragma once

namespace latte {
namespace LATTE_ISA {

struct Tiles {  // no state; tiles_amx.h has one
  Tiles() {}
};

// Multiplies kRows rows by 16 kN columns, whose sums stay in registers
template <int kRows, int kN>
LATTE_INLINE void dot_rows(const bf16* a, int64_t lda, Parts parts, int64_t steps, const bf16* b, float* c, int64_t ldc,
                           bool add) {
  __m512 acc[kRows][kN];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 3
    for (int j = 0; j < kN; ++j) acc[i][j] = add ? _mm512_loadu_ps(c + i * ldc + j * 16) : _mm512_setzero_ps();
  for (int64_t k = 0; k < parts.n; ++k) {
    const bf16 *p = a + parts.distance[k], *q = b + parts.place[k];
    for (int64_t s = 0; s < steps; ++s, p += 32, q += kTile)
      for (int64_t pair = 0; pair < 16; ++pair) {
        __m512bh rhs[kN];
#pragma GCC unroll 3
        for (int j = 0; j < kN; ++j) rhs[j] = (__m512bh)_mm512_loadu_si512(q + j * steps * kTile + pair * 32);
#pragma GCC unroll 16
        for (int i = 0; i < kRows; ++i) {
          const __m512bh lhs = (__m512bh)_mm512_set1_epi32(raw<int32_t>(p + i * lda + 2 * pair));
#pragma GCC unroll 3
          for (int j = 0; j < kN; ++j) acc[i][j] = _mm512_dpbf16_ps(acc[i][j], rhs[j], lhs);
        }
      }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 3
    for (int j = 0; j < kN; ++j) _mm512_storeu_ps(c + i * ldc + j * 16, acc[i][j]);
}

template <int kN>
LATTE_INLINE void dot_block(const bf16* a, int64_t lda, Parts parts, int64_t steps, const bf16* b, float* c,
                            int64_t ldc, bool add) {
  constexpr int kRows = kN == 1 ? 16 : 8;
  for (int i = 0; i < 16; i += kRows) dot_rows<kRows, kN>(a + i * lda, lda, parts, steps, b, c + i * ldc, ldc, add);
}

// C (16 kM x 16 kN) (+)= the sum over `parts` of A B, as in tiles_amx.h
template <int kM, int kN>
LATTE_INLINE void tile_product(const bf16* a0, const bf16* a1, int64_t lda, Parts parts, int64_t steps, const bf16* b,
                               float* c, int64_t ldc, bool add) {
  dot_block<kN>(a0, lda, parts, steps, b, c, ldc, add);
  if (kM == 2) dot_block<kN>(a1, lda, parts, steps, b, c + 16 * ldc, ldc, add);
}

// C (rows x cols tiles of 16) (+)= A B over `steps` of 32
static void tile_gemm(int64_t rows, int64_t cols, int64_t steps, const bf16* a, int64_t lda, const bf16* b, float* c,
                      int64_t ldc, bool add) {
  for (int64_t j = 0, n = 0; j < cols; j += n) {
    const int64_t left = cols - j;
    n = left == 3 || left > 4 ? 3 : left > 1 ? 2 : 1;
    const bf16* pb = b + j * steps * kTile;
    for (int64_t i = 0; i < rows * 16; i += 16) {
      float* pc = c + i * ldc + j * 16;
      if (n == 3) dot_block<3>(a + i * lda, lda, one_part(), steps, pb, pc, ldc, add);
      else if (n == 2) dot_block<2>(a + i * lda, lda, one_part(), steps, pb, pc, ldc, add);
      else dot_block<1>(a + i * lda, lda, one_part(), steps, pb, pc, ldc, add);
    }
  }
}

// The products of attention of at most 16 queries and keys. w[j] are 16 values of key j, one a query.
struct ShortProducts {
  Scratch<bf16> p;
  explicit ShortProducts(int64_t) : p(16 * 16) {}

  // w[j] = k_j . q; q is transposed by pairs, as transpose16 leaves it
  LATTE_INLINE void scores(const bf16* k, int64_t lda, const bf16* q, int64_t dim, Vec<float>* w) {
    __m512 acc[16];
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) acc[j] = _mm512_setzero_ps();
    for (int64_t c = 0; c < dim; c += 2, q += 32) {
      const __m512bh rhs = (__m512bh)_mm512_loadu_si512(q);
#pragma GCC unroll 16
      for (int j = 0; j < 16; ++j)
        acc[j] = _mm512_dpbf16_ps(acc[j], rhs, (__m512bh)_mm512_set1_epi32(raw<int32_t>(k + j * lda + c)));
    }
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) w[j] = acc[j];
  }

  // Row i of `out` is the sum over keys j of w[j][i] times row j of b
  LATTE_INLINE void over_keys(const Vec<float>* w, const bf16* b, int64_t lda, int64_t dim, bf16* out, int64_t stride,
                              int64_t n) {
    for (int j = 0; j < 16; j += 2)
      _mm512_storeu_si512(p + j * 16, weave(_mm512_cvtneps_pbh(w[j]), _mm512_cvtneps_pbh(w[j + 1])));
    product<2, 32>(b, lda, dim, out, stride, n);
  }

  // Row j of `out` is the sum over queries i of w[j][i] times row i of b
  LATTE_INLINE void over_queries(const Vec<float>* w, const bf16* b, int64_t lda, int64_t dim, bf16* out,
                                 int64_t stride, int64_t n) {
    for (int j = 0; j < 16; ++j) store(p + j * 16, w[j]);
    product<16, 2>(b, lda, dim, out, stride, n);
  }

 private:
  static LATTE_INLINE __m512i weave(__m256bh even, __m256bh odd) {
    const __m512i high = _mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)odd), 16);
    return _mm512_or_si512(_mm512_cvtepu16_epi32((__m256i)even), high);
  }

  // n rows of p times b; p's pairs lie kPair apart, its rows kRow
  template <int kRow, int kPair>
  LATTE_INLINE void product(const bf16* b, int64_t lda, int64_t dim, bf16* out, int64_t stride, int64_t n) {
    int64_t c = 0;
    for (; dim - c > 16; c += 32)
      for (int i = 0; i < 16; i += 8)
        columns32<kRow, kPair>(p + kRow * i, b + c, lda, dim - c, out + i * stride + c, stride, n - i);
    if (c < dim) columns16<kRow, kPair>(p, b + c, lda, dim - c, out + c, stride, n);
  }

  // 8 rows by up to 32 columns. Unpacking interleaves two rows of b four columns at a time; `order` undoes that.
  template <int kRow, int kPair>
  static LATTE_INLINE void columns32(const bf16* p, const bf16* b, int64_t lda, int64_t left, bf16* out, int64_t stride,
                                     int64_t n) {
    const __m512i order = _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0);
    const __mmask32 lanes = left >= 32 ? ~0u : (1u << left) - 1;
    __m512 acc[8][2];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) acc[i][0] = acc[i][1] = _mm512_setzero_ps();
    for (int j = 0; j < 8; ++j) {
      const __m512i even = _mm512_loadu_si512(b + 2 * j * lda), odd = _mm512_loadu_si512(b + (2 * j + 1) * lda);
      const __m512bh low = (__m512bh)_mm512_unpacklo_epi16(even, odd), high = (__m512bh)_mm512_unpackhi_epi16(even, odd);
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        const __m512bh lhs = (__m512bh)_mm512_set1_epi32(raw<int32_t>(p + j * kPair + i * kRow));
        acc[i][0] = _mm512_dpbf16_ps(acc[i][0], low, lhs);
        acc[i][1] = _mm512_dpbf16_ps(acc[i][1], high, lhs);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      const __m512i y = (__m512i)_mm512_cvtne2ps_pbh(acc[i][1], acc[i][0]);
      if (i < n) _mm512_mask_storeu_epi16(out + i * stride, lanes, _mm512_permutexvar_epi64(order, y));
    }
  }

  // 16 rows by up to 16 columns
  template <int kRow, int kPair>
  static LATTE_INLINE void columns16(const bf16* p, const bf16* b, int64_t lda, int64_t left, bf16* out, int64_t stride,
                                     int64_t n) {
    const __mmask16 lanes = static_cast<__mmask16>((1u << left) - 1);
    __m512 acc[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) acc[i] = _mm512_setzero_ps();
    for (int j = 0; j < 8; ++j) {
      const __m512bh rhs = (__m512bh)weave(raw<__m256bh>(b + 2 * j * lda), raw<__m256bh>(b + (2 * j + 1) * lda));
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i)
        acc[i] = _mm512_dpbf16_ps(acc[i], rhs, (__m512bh)_mm512_set1_epi32(raw<int32_t>(p + j * kPair + i * kRow)));
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i)
      if (i < n) _mm256_mask_storeu_epi16(out + i * stride, lanes, (__m256i)_mm512_cvtneps_pbh(acc[i]));
  }
};

}  // namespace LATTE_ISA
}  // namespace latte
