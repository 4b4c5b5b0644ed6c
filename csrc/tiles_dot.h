// bf16 products on vectors of pairs (AVX512-BF16), from the operands that AMX takes.
#pragma once

namespace latte {
namespace LATTE_ISA {

struct Tiles {  // no state; tiles_amx.h has one
  Tiles() {}
};

// kRows rows by 16 kN columns stay in registers
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

}  // namespace LATTE_ISA
}  // namespace latte
