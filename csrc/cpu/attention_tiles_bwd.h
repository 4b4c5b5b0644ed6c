// The backward of attention_tiles.h. Scores are computed transposed, keys by queries: the row statistics become
// vectors, and one layout of P and dS serves as the left operand of dV and dK and, packed by pairs of keys, as the
// right one of dQ^T.
#pragma once
#include "attention_tiles.h"

namespace latte {
namespace LATTE_ISA {

// Transposes rows (n x pitch) to rows (pitch x n); reads them as pack_columns left them
LATTE_INLINE void transpose_rows(const bf16* packed, int64_t n, int64_t pitch, int64_t cols, bf16* to) {
  const int64_t steps = pitch / 32;
  for (int64_t j = 0; j < n / 16; ++j)
    for (int64_t k = 0; k < cols; k += 2) {
      const __m512i pair = _mm512_loadu_si512(packed + (j * steps + k / 32) * kTile + k % 32 * 16);
      _mm256_storeu_si256((__m256i*)(to + k * n + j * 16), _mm512_cvtepi32_epi16(pair));
      _mm256_storeu_si256((__m256i*)(to + (k + 1) * n + j * 16), _mm512_cvtepi32_epi16(_mm512_srli_epi32(pair, 16)));
    }
}

// Computes P^T and dS^T of sixteen queries over all keys from scores and dP^T; bf16 rows overwrite the fp32 ones
LATTE_INLINE void softmax_gradient(float* s, float* dp, int64_t ld, int64_t column, int64_t lk, const float* bias,
                                   Vec<float> lse, float factor, float scale) {
  Vec<float> delta = {}, sum = {};
  for (int64_t j = 0; j < lk; ++j) {
    float* p = s + j * ld + column;
    Vec<float> x = exp2<4>(fma(load(p), splat(factor), -lse));
    if (bias && bias[j] != 0) x = Vec<float>{};
    sum += x;
    delta = fma(x, load(dp + j * ld + column), delta);
    store(p, x);
  }
  // cancels the rounding of lse, which grows with the scores: at one key p has to be 1, and dp - delta zero
  const Vec<float> inverse = one_over(sum);
  delta *= inverse;
  for (int64_t j = 0; j < lk; ++j) {
    const Vec<float> p = load(s + j * ld + column) * inverse, ds = p * (load(dp + j * ld + column) - delta) * scale;
    store(reinterpret_cast<bf16*>(s + j * ld) + column, p);
    store(reinterpret_cast<bf16*>(dp + j * ld) + column, ds);
  }
}

static void tiles_backward(const Axis& x) {
  const Attention& a = x.a;
  const int64_t pitch = round_up(a.dim, 32), wide = round_up(a.dim, 16), keys = round_up(x.lk, 32);
  const int64_t block = x.lq <= 32 ? 32 : 64, steps = pitch / 32;
  const float scale = static_cast<float>(a.scale), factor = scale * log2e<float>();
  split(x.units(), a.threads, [&](int64_t begin, int64_t end) {
    Scratch<bf16> k(keys * pitch), kt(keys * pitch), k_packed(keys * pitch), v(keys * pitch);
    Scratch<bf16> q(block * pitch), g(block * pitch), q_cols(block * pitch), g_cols(block * pitch);
    Scratch<bf16> q_rows(block * pitch), g_rows(block * pitch), ds_rows(keys * block);
    Scratch<float> s(keys * block), dp(keys * block), dk(keys * wide), dv(keys * wide), dq(block * wide), bias(keys);
    Scratch<float> dqt(wide * block);
    Tiles tiles;
    for (int64_t item = begin; item < end; ++item) {
      const Unit u(x, item);
      tile_rows(u, a.k, -1, 0, x.lk, keys, k, pitch, true);
      tile_rows(u, a.v, -1, 0, x.lk, keys, v, pitch, false);
      pack_columns(k, keys, pitch, k_packed);
      transpose_rows(k_packed, keys, pitch, wide, kt);
      if (u.mask()) key_bias<float>(u.mask(), x.lk, keys, bias);
      for (int64_t i = 0; i < x.lq; i += block) {
        const int64_t n = min(block, x.lq - i), padded = round_up(n, 32), high = padded / 16;
        tile_rows(u, a.q, -1, i, n, padded, q, pitch, true);
        tile_rows(u, a.dout, -1, i, n, padded, g, pitch, false);
        pack_columns(q, padded, pitch, q_cols);
        pack_columns(g, padded, pitch, g_cols);
        pack_rows(q, padded, pitch, wide, q_rows);
        pack_rows(g, padded, pitch, wide, g_rows);
        tile_gemm(keys / 16, high, steps, k, pitch, q_cols, s, block, false);
        tile_gemm(keys / 16, high, steps, v, pitch, g_cols, dp, block, false);
        for (int64_t c = 0; c < padded; c += 16) {
          alignas(64) float lse[16];  // infinite where there is no query, so that p is 0
          for (int64_t r = 0; r < 16; ++r)
            lse[r] = c + r < n ? u.lse()[(i + c + r) * x.lse_row()] * log2e<float>() : infinity<float>();
          softmax_gradient(s, dp, block, c, x.lk, u.mask() ? bias.p : nullptr, load(lse), factor, scale);
        }
        std::memset(s + x.lk * block, 0, (keys - x.lk) * block * sizeof(float));
        std::memset(dp + x.lk * block, 0, (keys - x.lk) * block * sizeof(float));
        const bf16 *p = reinterpret_cast<bf16*>(s.p), *ds = reinterpret_cast<bf16*>(dp.p);
        tile_gemm(keys / 16, wide / 16, padded / 32, p, 2 * block, g_rows, dv, wide, i > 0);
        tile_gemm(keys / 16, wide / 16, padded / 32, ds, 2 * block, q_rows, dk, wide, i > 0);
        pack_rows(ds, keys, 2 * block, padded, ds_rows);
        tile_gemm(wide / 16, high, keys / 32, kt, keys, ds_rows, dqt, block, false);
        for (int64_t r = 0; r < padded; r += 16)
          for (int64_t c = 0; c < wide; c += 16)
            transpose16(dqt + c * block + r, block * 4, dq + r * wide + c, wide * 4);
        put<float>(dq.p, wide, u.at<bf16>(a.dq) + i * x.row(a.dq), x.row(a.dq), n, a, i, true);
      }
      put<float>(dk.p, wide, u.at<bf16>(a.dk), x.row(a.dk), x.lk, a, 0, true);
      put<float>(dv.p, wide, u.at<bf16>(a.dv), x.row(a.dv), x.lk, a, 0, false);
      sum_tokens<float, bf16>(u);
    }
  });
}

}  // namespace LATTE_ISA
}  // namespace latte
