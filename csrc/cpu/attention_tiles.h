// bf16 attention on tiles. Scores of a block of queries stay in L1 or L2 as fp32; probabilities overwrite them as
// bf16.
#pragma once
#include "attention_vector.h"
#include "tiles.h"

namespace latte {
namespace LATTE_ISA {

// Adds the linear layer's bias (`which` of q, k, v; -1 for none) to n rows of one head and rotates them by the rope
LATTE_INLINE void shift_rows(const Unit& u, int which, int64_t first, int64_t n, bf16* to, int64_t pitch, bool turn) {
  const Attention& a = u.axis.a;
  const bf16* bias = which < 0 ? nullptr : u.bias<bf16>(which);
  const bool rope = turn && a.cos;
  if (!bias && !rope) return;
  const int64_t wide = round_up(a.dim, 16);
  alignas(64) float row[128] = {}, shift[128] = {};
  if (bias) each_vec<float>(a.dim, [&](int64_t k, auto n) { store<float>(shift + k, load<float>(bias + k, n), n); });
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t k = 0; k < wide; k += 16) store(row + k, load<float>(to + i * pitch + k) + load(shift + k));
    if (rope) rotate(row, a, first + i, false);
    for (int64_t k = 0; k < wide; k += 16) store(to + i * pitch + k, load(row + k));
  }
}

// Copies the rows of one head, padded for the tiles, with bias and rope
LATTE_INLINE void tile_rows(const Unit& u, const Heads& t, int which, int64_t first, int64_t n, int64_t padded,
                            bf16* to, int64_t pitch, bool turn) {
  const int64_t stride = u.axis.row(t);
  const bf16* from = u.at<const bf16>(t) + first * stride;
  pad_rows(from, stride, n, padded, u.axis.a.dim, to, pitch,
           n > 16 ? from + 24 * stride : u.next().at<const bf16>(t));
  shift_rows(u, which, first, n, to, pitch, turn);
}

// 1 / sum, and 0 for a query without a key
LATTE_INLINE Vec<float> one_over(Vec<float> sum) {
  return _mm512_maskz_div_ps(_mm512_cmp_ps_mask(sum, splat(0.0f), _CMP_NEQ_UQ), splat(1.0f), sum);
}

// softmax_row for bf16 probabilities, which overwrite the first half of the scores' memory
LATTE_INLINE float softmax_bf16(float* s, const float* bias, int64_t n, float factor, float* inverse, bool want) {
  Vec<float> top = splat(-infinity<float>());
  if (bias) {
    for (int64_t j = 0; j < n; j += 16) {
      const Vec<float> v = hidden<float>(load(s + j), load(bias + j));
      store(s + j, v);
      top = max(top, v);
    }
  } else {
    for (int64_t j = 0; j < n; j += 16) top = max(top, load(s + j));
  }
  const float most = hmax<float>(top), peak = most == -infinity<float>() ? 0 : most;
  bf16* p = reinterpret_cast<bf16*>(s);
  Vec<float> sum = {};
  for (int64_t j = 0; j < n; j += 16) {
    const Vec<float> w = exp2<3>((load(s + j) - peak) * factor);
    sum += w;
    store(p + j, w);
  }
  const float total = hsum<float>(sum);
  *inverse = total == 0 ? 0 : 1 / total;
  return want && total != 0 ? (peak * factor + std::log2(total)) / log2e<float>() : 0;
}

// Writes rows of a head from fp32, each times its factor
LATTE_INLINE void write_rows(const float* from, int64_t pitch, const float* factor, const Unit& u, const Heads& t,
                             int64_t first, int64_t n) {
  for (int64_t r = 0; r < n; ++r) {
    bf16* out = u.at<bf16>(t) + (first + r) * u.axis.row(t);
    each_vec<float>(u.axis.a.dim, [&](int64_t c, auto lanes) LATTE_LAMBDA {
      store<float>(out + c, load<float>(from + r * pitch + c) * factor[r], lanes);
    });
  }
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
        tile_rows(u, a.k, 1, 0, x.lk, keys, rows, pitch, true);
        pack_columns(rows, keys, pitch, k);
        tile_rows(u, a.v, 2, 0, x.lk, keys, rows, pitch, false);
        pack_rows(rows, keys, pitch, wide, v);
        if (biased) key_bias<float>(u.mask(), x.lk, keys, bias);
      }
      const int64_t first = item % items.parts * items.rows, last = min(x.lq, first + items.rows);
      for (int64_t i = first; i < last; i += kBlock) {
        const int64_t n = min(kBlock, last - i), high = (n + 15) / 16;
        tile_rows(u, a.q, 0, i, n, high * 16, q, pitch, true);
        tile_gemm(high, keys / 16, pitch / 32, q, pitch, k, s, keys, false);
        float inverse[kBlock];
        for (int64_t r = 0; r < n; ++r) {
          const float lse = softmax_bf16(s + r * keys, biased ? bias.p : nullptr, keys, factor, inverse + r, a.lse);
          if (a.lse) u.lse()[(i + r) * x.lse_row()] = lse;
        }
        tile_gemm(high, wide / 16, keys / 32, reinterpret_cast<bf16*>(s.p), 2 * keys, v, o, wide, false);
        write_rows(o, wide, inverse, u, a.out, i, n);
      }
    }
  });
}

}  // namespace LATTE_ISA
}  // namespace latte
