// bf16 attention of up to 16 queries and keys, such as a position's frames: every product is one tile high. The rows of
// a position lie so far apart that all of them map to one set of the cache, which holds eight lines. So the rows of
// several neighbouring heads are copied side by side before any of them is used.
#pragma once
#include "attention_tiles.h"

namespace latte {
namespace LATTE_ISA {

LATTE_INLINE bool is_short(const Axis& x) { return x.lq <= 16 && x.lk <= 16; }

constexpr int64_t kTogether = 6;  // most heads that are staged at a time

// The rows of some neighbouring heads of kTensors tensors: 16 rows a tensor, of `width` values, a head every `pitch`;
// zero where there is nothing
template <int kTensors> struct Staged {
  const Axis& x;
  const Heads* const (&tensors)[kTensors];
  const int64_t pitch, width;
  Scratch<bf16> rows;
  Staged(const Axis& axis, const Heads* const (&of)[kTensors], int64_t heads)
      : x(axis), tensors(of), pitch(round_up(axis.a.dim, 32)), width(heads * pitch), rows(kTensors * 16 * width) {
    std::memset(static_cast<void*>(rows.p), 0, kTensors * 16 * width * sizeof(bf16));
  }

  bf16* at(int t, int64_t head) const { return rows + t * 16 * width + head * pitch; }

  // Copies u's head and those after it, and prefetches rows needed soon, which no hardware prefetcher follows
  void load(const Unit& u, int64_t heads) {
    constexpr int64_t kAhead = 4;
    const int64_t dim = x.a.dim, vectors = heads * pitch / 32;
    for (int t = 0; t < kTensors; ++t) {
      const int64_t n = t == 1 || t == 2 ? x.lk : x.lq, stride = x.row(*tensors[t]);
      int64_t from[kTogether * 4];
      __mmask32 lanes[kTogether * 4];
      for (int64_t c = 0; c < vectors; ++c) {
        const int64_t k = c * 32 % pitch;
        from[c] = c * 32 / pitch * tensors[t]->sh + k;
        lanes[c] = dim - k >= 32 ? ~0u : (1u << (dim - k)) - 1;
      }
      const bf16* row = u.at<const bf16>(*tensors[t]);
      bf16* to = at(t, 0);
      for (int64_t i = 0; i < n; ++i, row += stride, to += width) {
        const bf16* ahead = i + kAhead < n ? row + kAhead * stride : row;
        for (int64_t c = 0; c < vectors; ++c) {
          _mm_prefetch(reinterpret_cast<const char*>(ahead + from[c]), _MM_HINT_T0);
          _mm512_storeu_si512(to + c * 32, _mm512_maskz_loadu_epi16(lanes[c], row + from[c]));
        }
      }
    }
  }
};

// Turns scores, keys by queries, into probabilities. If `want`, returns log2 of each query's sum of exponentials, 0 for
// a query without a key.
LATTE_INLINE Vec<float> short_softmax(Vec<float>* w, int64_t lk, float factor, const float* bias, bool want) {
  Vec<float> top = splat(-infinity<float>()), sum = {};
  for (int64_t j = 0; j < 16; ++j) {
    if (j >= lk) w[j] = splat(-infinity<float>());
    if (bias && bias[j] != 0) w[j] = splat(-infinity<float>());
    top = max(top, w[j]);
  }
  top = top == -infinity<float>() ? Vec<float>{} : top;  // a query without a key: 2^-inf is 0, where -inf + inf is NaN
  for (int64_t j = 0; j < 16; ++j) {
    w[j] = exp2<4>((w[j] - top) * factor);
    sum += w[j];
  }
  const Vec<float> inverse = one_over(sum);
  for (int64_t j = 0; j < 16; ++j) w[j] *= inverse;
  if (!want) return sum;
  for (int64_t i = 0; i < 16; ++i) sum[i] = sum[i] == 0 ? 0 : top[i] * factor + std::log2(sum[i]);
  return sum;
}

// Calls f(unit, its place among the staged heads, staged rows, products, mask) for each head of each sequence; the mask
// is what key_bias writes, or null
template <int kTensors, class F>
LATTE_INLINE void each_short(const Axis& x, const Heads* const (&tensors)[kTensors], F f) {
  const Attention& a = x.a;
  const int64_t groups = (a.h + kTogether - 1) / kTogether, together = (a.h + groups - 1) / groups;
  split(x.units() / a.h * groups, a.threads, [&](int64_t begin, int64_t end) {
    Staged<kTensors> staged(x, tensors, together);
    Scratch<float> bias(16);
    ShortProducts products(staged.pitch);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t h0 = item % groups * together, heads = min(together, a.h - h0);
      const Unit first(x, item / groups * a.h + h0);
      staged.load(first, heads);
      if (first.mask()) key_bias<float>(first.mask(), x.lk, 16, bias);
      for (int64_t h = 0; h < heads; ++h) f(Unit(first, h), h, staged, products, first.mask() ? bias.p : nullptr);
    }
  });
}

// A staged head's 16 rows, transposed by pairs of columns: the right operand of a product over them
LATTE_INLINE void transpose_pairs(const bf16* rows, int64_t width, int64_t pitch, bf16* to) {
  for (int64_t k = 0; k < pitch; k += 32) transpose16(rows + k, width * 2, to + k * 16, 64);
}

static void short_forward(const Axis& x) {
  const Attention& a = x.a;
  const float factor = static_cast<float>(a.scale) * log2e<float>();
  const Heads* const tensors[] = {&a.q, &a.k, &a.v};
  each_short(x, tensors, [&](const Unit& u, int64_t h, const auto& staged, auto& products, const float* mask) {
    const int64_t width = staged.width;
    for (int t = 0; t < 3; ++t) shift_rows(u, t, 0, t ? x.lk : x.lq, staged.at(t, h), width, t < 2);
    alignas(64) bf16 q[16 * 128];
    transpose_pairs(staged.at(0, h), width, staged.pitch, q);
    Vec<float> w[16];
    products.scores(staged.at(1, h), width, q, a.dim, w);
    const Vec<float> lse = short_softmax(w, x.lk, factor, mask, a.lse);
    products.over_keys(w, staged.at(2, h), width, a.dim, u.template at<bf16>(a.out), x.row(a.out), x.lq);
    if (!a.lse) return;
    for (int64_t i = 0; i < x.lq; ++i) u.lse()[i * x.lse_row()] = lse[i] / log2e<float>();
  });
}

// The gradient of the scores before scaling, from probabilities and their gradient
LATTE_INLINE void short_softmax_gradient(const Vec<float>* w, Vec<float>* d, float scale) {
  Vec<float> delta = {};
  for (int64_t j = 0; j < 16; ++j) delta = fma(w[j], d[j], delta);
  for (int64_t j = 0; j < 16; ++j) d[j] = w[j] * (d[j] - delta) * scale;
}

// Takes no rope: rotating back needs gradients in fp32
static void short_backward(const Axis& x) {
  const Attention& a = x.a;
  const float scale = static_cast<float>(a.scale);
  const Heads* const tensors[] = {&a.q, &a.k, &a.v, &a.dout};
  each_short(x, tensors, [&](const Unit& u, int64_t h, const auto& staged, auto& products, const float* mask) {
    const int64_t width = staged.width;
    alignas(64) bf16 q[16 * 128], g[16 * 128];
    transpose_pairs(staged.at(0, h), width, staged.pitch, q);
    transpose_pairs(staged.at(3, h), width, staged.pitch, g);
    Vec<float> w[16], d[16];
    products.scores(staged.at(1, h), width, q, a.dim, w);
    products.scores(staged.at(2, h), width, g, a.dim, d);
    // the softmax is recomputed, not taken from the saved lse: at one key p has to be 1, and dp - delta zero
    short_softmax(w, x.lk, scale * log2e<float>(), mask, false);
    short_softmax_gradient(w, d, scale);
    products.over_queries(w, staged.at(3, h), width, a.dim, u.template at<bf16>(a.dv), x.row(a.dv), x.lk);
    products.over_queries(d, staged.at(0, h), width, a.dim, u.template at<bf16>(a.dk), x.row(a.dk), x.lk);
    products.over_keys(d, staged.at(1, h), width, a.dim, u.template at<bf16>(a.dq), x.row(a.dq), x.lq);
    sum_tokens<float, bf16>(u);
  });
}

}  // namespace LATTE_ISA
}  // namespace latte
