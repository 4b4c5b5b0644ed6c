// bf16 attention on AMX tiles. Scores of a block of queries stay in L1 or L2 as fp32; probabilities overwrite them as bf16.
#pragma once
#include "attention_vector.h"
#include "tiles.h"

namespace latte {
namespace LATTE_ISA {

// The rows of one head, padded for the tiles and turned by rope
LATTE_INLINE void tile_rows(const bf16* from, int64_t stride, int64_t n, int64_t padded, bf16* to, int64_t pitch,
                            const Attention& a, int64_t position, bool turn) {
  pad_rows(from, stride, n, padded, a.dim, to, pitch);
  if (!turn || !a.cos) return;
  alignas(64) float row[128];
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t k = 0; k < a.dim; k += 8)
      _mm256_store_ps(row + k, _mm256_castsi256_ps(_mm256_slli_epi32(
                                   _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)(to + i * pitch + k))), 16)));
    rotate(row, a, position + i, false);
    for (int64_t k = 0; k < a.dim; k += 8) {
      const auto h = _mm256_cvtneps_pbh(_mm256_load_ps(row + k));
      std::memcpy(to + i * pitch + k, &h, 16);
    }
  }
}

// softmax_row for bf16 probabilities, which are written over the scores from their start
LATTE_INLINE float softmax_bf16(float* s, const float* bias, int64_t n, float factor, float* inverse) {
  Vec<float> top = splat(-infinity<float>());
  if (bias) {
    for (int64_t j = 0; j < n; j += 16) {
      const Vec<float> v = load(s + j) + load(bias + j);
      store(s + j, v);
      top = max(top, v);
    }
  } else {
    for (int64_t j = 0; j < n; j += 16) top = max(top, load(s + j));
  }
  const float peak = hmax<float>(top) * factor;
  if (!(peak > -infinity<float>())) {
    std::memset(s, 0, n * sizeof(bf16));
    *inverse = 0;
    return 0;
  }
  bf16* p = reinterpret_cast<bf16*>(s);
  Vec<float> sum = {};
  for (int64_t j = 0; j < n; j += 16) {
    const Vec<float> w = exp2<4>(fma(load(s + j), splat(factor), splat(-peak)));
    sum += w;
    store(p + j, w);
  }
  const float total = hsum<float>(sum);
  *inverse = 1 / total;
  return peak + std::log2(total);
}

static void tiles_forward(const Axis& x) {
  const Attention& a = x.a;
  const int64_t pitch = round_up(a.dim, 32), wide = round_up(a.dim, 16), keys = round_up(x.lk, 32);
  const float factor = static_cast<float>(a.scale) * log2e<float>();
  const Items items(x, kBlock);
  split(x.units() * items.parts, a.threads, [&](int64_t begin, int64_t end) {
    Scratch<bf16> q(kBlock * pitch), rows(keys * pitch), k(keys * pitch), v(keys * wide);
    Scratch<float> s(kBlock * keys), o(kBlock * wide), bias(keys);
    Tiles tiles;
    int64_t loaded = -1;
    for (int64_t item = begin; item < end; ++item) {
      const Unit u(x, item / items.parts);
      const bool biased = u.mask() || keys != x.lk;
      if (item / items.parts != loaded) {
        loaded = item / items.parts;
        tile_rows(u.at<const bf16>(a.k), x.row(a.k), x.lk, keys, rows, pitch, a, 0, true);
        pack_columns(rows, keys, pitch, k);
        tile_rows(u.at<const bf16>(a.v), x.row(a.v), x.lk, keys, rows, pitch, a, 0, false);
        pack_rows(rows, keys, pitch, wide, v);
        if (biased) key_bias<float>(u.mask(), x.lk, keys, bias);
      }
      const int64_t first = item % items.parts * items.rows, last = min(x.lq, first + items.rows);
      for (int64_t i = first; i < last; i += kBlock) {
        const int64_t n = min(kBlock, last - i), high = (n + 15) / 16;
        tile_rows(u.at<const bf16>(a.q) + i * x.row(a.q), x.row(a.q), n, high * 16, q, pitch, a, i, true);
        tile_gemm(high, keys / 16, pitch / 32, q, pitch, k, s, keys, false);
        float inverse[kBlock];
        for (int64_t r = 0; r < n; ++r) {
          const float lse = softmax_bf16(s + r * keys, biased ? bias.p : nullptr, keys, factor, inverse + r);
          if (a.lse) u.lse()[(i + r) * x.lse_row()] = lse / log2e<float>();
        }
        tile_gemm(high, wide / 16, keys / 32, reinterpret_cast<bf16*>(s.p), 2 * keys, v, o, wide, false);
        for (int64_t r = 0; r < n; ++r) {
          bf16* out = u.at<bf16>(a.out) + (i + r) * x.row(a.out);
          each_vec<float>(a.dim, [&](int64_t c, auto lanes) LATTE_LAMBDA {
            store<float>(out + c, load<float>(o + r * wide + c) * inverse[r], lanes);
          });
        }
      }
    }
  });
}

static void tiles_backward(const Axis& x) { vector_backward<float, bf16>(x); }

}  // namespace LATTE_ISA
}  // namespace latte
