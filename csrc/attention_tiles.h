// bf16 attention on tiles. Scores of a block of queries stay in L1 or L2 as fp32; probabilities overwrite them as
// bf16.
#pragma once
#include "attention_vector.h"
#include "tiles.h"

namespace latte {
namespace LATTE_ISA {

// The rows of one head, padded for the tiles, with the linear layer's bias (`which` of q, k, v; -1 for none) and rope
LATTE_INLINE void tile_rows(const Unit& u, const Heads& t, int which, int64_t first, int64_t n, int64_t padded,
                            bf16* to, int64_t pitch, bool turn) {
  const Attention& a = u.axis.a;
  const int64_t stride = u.axis.row(t);
  const bf16* from = u.at<const bf16>(t) + first * stride;
  pad_rows(from, stride, n, padded, a.dim, to, pitch, n > 16 ? from + 24 * stride : u.next().at<const bf16>(t));
  const bf16* bias = which < 0 ? nullptr : u.bias<bf16>(which);
  const bool rope = turn && a.cos;
  if (!bias && !rope) return;
  alignas(64) float row[128] = {}, shift[128] = {};
  if (bias) each_vec<float>(a.dim, [&](int64_t k, auto n) { store<float>(shift + k, load<float>(bias + k, n), n); });
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t k = 0; k < pitch; k += 16) store(row + k, load<float>(to + i * pitch + k) + load(shift + k));
    if (rope) rotate(row, a, first + i, false);
    for (int64_t k = 0; k < pitch; k += 16) store(to + i * pitch + k, load(row + k));
  }
}

// softmax_row for bf16 probabilities, which are written over the scores from their start
LATTE_INLINE float softmax_bf16(float* s, const float* bias, int64_t n, float factor, float* inverse, bool want) {
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
    const Vec<float> w = exp2<3>(fma(load(s + j), splat(factor), splat(-peak)));
    sum += w;
    store(p + j, w);
  }
  const float total = hsum<float>(sum);
  *inverse = 1 / total;
  return want ? (peak + std::log2(total)) / log2e<float>() : 0;
}

// Rows of a head from fp32, each times its factor
LATTE_INLINE void write_rows(const float* from, int64_t pitch, const float* factor, const Unit& u, const Heads& t,
                             int64_t first, int64_t n) {
  for (int64_t r = 0; r < n; ++r) {
    bf16* out = u.at<bf16>(t) + (first + r) * u.axis.row(t);
    each_vec<float>(u.axis.a.dim, [&](int64_t c, auto lanes) LATTE_LAMBDA {
      store<float>(out + c, load<float>(from + r * pitch + c) * factor[r], lanes);
    });
  }
}

// Up to 16 queries and keys, one tile of scores: computed transposed, so that softmax runs down the columns
static void short_forward(const Axis& x) {
  const Attention& a = x.a;
  const int64_t pitch = round_up(a.dim, 32), wide = round_up(a.dim, 16);
  const float factor = static_cast<float>(a.scale) * log2e<float>();
  split(x.units(), a.threads, [&](int64_t begin, int64_t end) {
    Scratch<bf16> rows(16 * pitch), q(16 * pitch), v(32 * wide), p(16 * 32);
    Scratch<float> s(16 * 16), pt(16 * 16), o(16 * wide), bias(16);
    std::memset(static_cast<void*>(v.p), 0, 32 * wide * sizeof(bf16));
    std::memset(static_cast<void*>(p.p), 0, 16 * 32 * sizeof(bf16));
    Tiles tiles;
    for (int64_t item = begin; item < end; ++item) {
      const Unit u(x, item);
      tile_rows(u, a.q, 0, 0, x.lq, 16, rows, pitch, true);
      pack_columns(rows, 16, pitch, q);
      tile_rows(u, a.k, 1, 0, x.lk, 16, rows, pitch, true);
      tile_gemm(1, 1, pitch / 32, rows, pitch, q, s, 16, false);
      tile_rows(u, a.v, 2, 0, x.lk, 16, rows, pitch, false);
      for (int64_t j = 0; j < wide; j += 16) pack_pairs(rows + j, 16, pitch, v + j * 32);
      Vec<float> w[16], top = splat(-infinity<float>()), sum = {};
      if (u.mask()) key_bias<float>(u.mask(), x.lk, 16, bias);
      for (int64_t j = 0; j < 16; ++j) {
        w[j] = j < x.lk ? load(s + j * 16) * factor : splat(-infinity<float>());
        if (u.mask()) w[j] += bias[j];
        top = max(top, w[j]);
      }
      top = max(top, splat(-1e30f));  // a query without a key: 2^(-inf + 1e30) is 0, where -inf + inf would be NaN
      for (int64_t j = 0; j < 16; ++j) {
        w[j] = exp2<4>(w[j] - top);
        sum += w[j];
        store(pt + j * 16, w[j]);
      }
      transpose16(pt, 64, s, 64);
      for (int64_t i = 0; i < 16; ++i) store(p + i * 32, load(s + i * 16));
      alignas(64) float inverse[16], lse[16];
      store(inverse, sum > 0 ? 1 / sum : sum);
      tile_gemm(1, wide / 16, 1, p, 32, v, o, wide, false);
      write_rows(o, wide, inverse, u, a.out, 0, x.lq);
      if (!a.lse) continue;
      store(lse, top);
      for (int64_t i = 0; i < x.lq; ++i)
        u.lse()[i * x.lse_row()] = inverse[i] > 0 ? (lse[i] - std::log2(inverse[i])) / log2e<float>() : 0;
    }
  });
}

static void tiles_forward(const Axis& x) {
  if (x.lq <= 16 && x.lk <= 16) return short_forward(x);
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
