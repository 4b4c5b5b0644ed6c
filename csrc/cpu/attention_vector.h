// Attention in fp32 (or float64) vectors, for every level and dtype that the matrix tiles do not serve.
#pragma once
#include "attention.h"
#include "gemm.h"

namespace latte {
namespace LATTE_ISA {

constexpr int64_t kBlock = 32;  // query rows at a time
constexpr int64_t kScore = 16;  // terms a running sum: a score's error is its probability's relative error

LATTE_INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Widens n rows of width `dim` into rows of `pitch`; rows up to `padded` and columns past dim are zero
template <class A, class T>
void fetch(const T* from, int64_t stride, int64_t n, int64_t padded, A* to, int64_t pitch, const Attention& a,
           int64_t position, bool turn, const T* bias = nullptr) {
  for (int64_t i = 0; i < padded; ++i, to += pitch) {
    std::memset(to, 0, pitch * sizeof(A));
    if (i >= n) continue;
    each_vec<A>(a.dim, [&](int64_t k, auto lanes) LATTE_LAMBDA {
      const Vec<A> x = load<A>(from + i * stride + k, lanes);
      store<A>(to + k, bias ? x + load<A>(bias + k, lanes) : x, lanes);
    });
    if (turn && a.cos) rotate(to, a, position + i, false);
  }
}

template <class A> void transpose(const A* from, int64_t rows, int64_t cols, int64_t pitch, A* to, int64_t to_pitch) {
  for (int64_t i = 0; i < rows; i += 8)
    for (int64_t k = 0; k < cols; ++k)
      for (int64_t r = i; r < min(rows, i + 8); ++r) to[k * to_pitch + r] = from[r * pitch + k];
}

// -inf where a key is masked or only padding
template <class A> void key_bias(const uint8_t* mask, int64_t lk, int64_t padded, A* bias) {
  for (int64_t j = 0; j < padded; ++j) bias[j] = j < lk && (!mask || mask[j]) ? A(0) : -infinity<A>();
}

// Scores, or -inf where `bias` hides the key, whatever the score is
template <class A> LATTE_INLINE Vec<A> hidden(Vec<A> s, Vec<A> bias) { return bias == A(0) ? s : bias; }

// Replaces s by exp2(s * factor - top * factor), top being the row's maximum; returns log2 of the sum of
// exp2(s * factor), and in `divisor` the sum of the new s, or 1 where there is no key. The exponent is rounded once,
// but for top * factor, whose rounding every key shares; of large scores that would be more than exp2 can take, so
// s - top is computed first.
template <class A> LATTE_INLINE A softmax_row(A* s, const A* bias, int64_t n, A factor, A* divisor) {
  constexpr int L = kLanes<A>;
  Vec<A> top = splat(-infinity<A>());
  for (int64_t j = 0; j < n; j += L) top = max(top, hidden<A>(load<A>(s + j), load<A>(bias + j)));
  // a row without a key has no maximum; a row with a NaN has none either, and its sum is NaN
  const A most = hmax<A>(top), peak = most == -infinity<A>() ? A(0) : most;
  const bool large = !(std::abs(peak * factor) < A(65536));
  const A first = large ? peak : A(0), then = large ? A(0) : peak * factor;
  Vec<A> sum = {};
  for (int64_t j = 0; j < n; j += L) {
    const Vec<A> p = exp2<6>(fma(hidden<A>(load<A>(s + j), load<A>(bias + j)) - first, splat(factor), splat(-then)));
    sum += p;
    store<A>(s + j, p);
  }
  const A total = hsum<A>(sum);
  *divisor = total == 0 ? A(1) : total;
  return total == 0 ? A(0) : peak * factor + std::log2(total);
}

template <class A, class T> void vector_forward(const Axis& x) {
  const Attention& a = x.a;
  const int64_t keys = round_up(x.lk, kBlock), wide = round_up(a.dim, kLanes<A>);
  const A factor = static_cast<A>(a.scale) * log2e<A>();
  const Items items(x, kBlock);
  split(x.units() * items.parts, a.threads, [&](int64_t begin, int64_t end) {
    Scratch<A> k(keys * wide), kt(wide * keys), v(keys * wide), q(kBlock * wide), s(kBlock * keys), o(kBlock * wide);
    Scratch<A> bias(keys);
    int64_t loaded = -1;
    for (int64_t item = begin; item < end; ++item) {
      const Unit u(x, item / items.parts);
      if (item / items.parts != loaded) {
        loaded = item / items.parts;
        fetch<A>(u.at<const T>(a.k), x.row(a.k), x.lk, keys, k.p, wide, a, 0, true, u.template bias<T>(1));
        transpose<A>(k, keys, wide, wide, kt, keys);
        fetch<A>(u.at<const T>(a.v), x.row(a.v), x.lk, keys, v.p, wide, a, 0, false, u.template bias<T>(2));
        key_bias<A>(u.mask(), x.lk, keys, bias);
      }
      const int64_t first = item % items.parts * items.rows, last = min(x.lq, first + items.rows);
      for (int64_t i = first; i < last; i += kBlock) {
        const int64_t n = min(kBlock, last - i), rows = round_up(n, kTileRows);
        fetch<A>(u.at<const T>(a.q) + i * x.row(a.q), x.row(a.q), n, rows, q.p, wide, a, i, true,
                 u.template bias<T>(0));
        gemm<A, kScore>(rows, keys, a.dim, {q, wide, 1}, kt, keys, s, keys, false);
        A inverse[kBlock];
        for (int64_t r = 0; r < n; ++r) {
          A total;
          const A lse = softmax_row<A>(s + r * keys, bias, keys, factor, &total);
          inverse[r] = 1 / total;
          if (a.lse) u.lse()[(i + r) * x.lse_row()] = static_cast<float>(lse / log2e<A>());
        }
        gemm<A>(rows, wide, x.lk, {s, keys, 1}, v, wide, o, wide, false);
        for (int64_t r = 0; r < n; ++r) {
          T* out = u.at<T>(a.out) + (i + r) * x.row(a.out);
          each_vec<A>(a.dim, [&](int64_t c, auto lanes) LATTE_LAMBDA {
            store<A>(out + c, load<A>(o + r * wide + c, lanes) * inverse[r], lanes);
          });
        }
      }
    }
  });
}

template <class A, class T>
void put(A* from, int64_t pitch, T* to, int64_t stride, int64_t n, const Attention& a, int64_t position, bool turn) {
  for (int64_t i = 0; i < n; ++i) {
    if (turn && a.cos) rotate(from + i * pitch, a, position + i, true);
    each_vec<A>(a.dim, [&](int64_t k, auto lanes) LATTE_LAMBDA {
      store<A>(to + i * stride + k, load<A>(from + i * pitch + k, lanes), lanes);
    });
  }
}

template <class A, class T> void vector_backward(const Axis& x) {
  const Attention& a = x.a;
  const int64_t keys = round_up(x.lk, kBlock), wide = round_up(a.dim, kLanes<A>);
  const A factor = static_cast<A>(a.scale) * log2e<A>();
  split(x.units(), a.threads, [&](int64_t begin, int64_t end) {
    Scratch<A> k(keys * wide), kt(wide * keys), v(keys * wide), vt(wide * keys), dk(keys * wide), dv(keys * wide);
    Scratch<A> q(kBlock * wide), g(kBlock * wide), dq(kBlock * wide), bias(keys);
    Scratch<A> s(kBlock * keys), ds(kBlock * keys);
    for (int64_t item = begin; item < end; ++item) {
      const Unit u(x, item);
      fetch<A>(u.at<const T>(a.k), x.row(a.k), x.lk, keys, k.p, wide, a, 0, true);
      fetch<A>(u.at<const T>(a.v), x.row(a.v), x.lk, keys, v.p, wide, a, 0, false);
      transpose<A>(k, keys, wide, wide, kt, keys);
      transpose<A>(v, keys, wide, wide, vt, keys);
      key_bias<A>(u.mask(), x.lk, keys, bias);
      for (int64_t i = 0; i < x.lq; i += kBlock) {
        const int64_t n = min(kBlock, x.lq - i), rows = round_up(n, kTileRows);
        fetch<A>(u.at<const T>(a.q) + i * x.row(a.q), x.row(a.q), n, rows, q.p, wide, a, i, true);
        fetch<A>(u.at<const T>(a.dout) + i * x.row(a.dout), x.row(a.dout), n, rows, g.p, wide, a, i, false);
        gemm<A, kScore>(rows, keys, a.dim, {q, wide, 1}, kt, keys, s, keys, false);
        gemm<A, kScore>(rows, keys, a.dim, {g, wide, 1}, vt, keys, ds, keys, false);
        for (int64_t r = 0; r < n; ++r) {
          // the softmax is recomputed, not taken from the saved lse, and delta comes from p and dp, not from out: an
          // fp32 lse loses digits, and at one key dp - delta has to be exactly zero
          A *p = s + r * keys, *dp = ds + r * keys, total;
          softmax_row<A>(p, bias, keys, factor, &total);
          Vec<A> dot = {};
          for (int64_t j = 0; j < keys; j += kLanes<A>) {
            const Vec<A> w = load<A>(p + j) / total;  // 1 at one key, which a product with 1 / total may miss
            store<A>(p + j, w);
            dot = fma(w, load<A>(dp + j), dot);
          }
          // delta, then a correction for its rounding and that of p: where one key has most of p, dp - delta cancels
          const A delta = hsum<A>(dot);
          Vec<A> left = {};
          for (int64_t j = 0; j < keys; j += kLanes<A>) {
            const Vec<A> d = load<A>(dp + j) - delta;
            store<A>(dp + j, d);
            left = fma(load<A>(p + j), d, left);
          }
          const A rest = hsum<A>(left);
          for (int64_t j = 0; j < keys; j += kLanes<A>)
            store<A>(dp + j, load<A>(p + j) * (load<A>(dp + j) - rest) * static_cast<A>(a.scale));
        }
        std::memset(s + n * keys, 0, (rows - n) * keys * sizeof(A));
        std::memset(ds + n * keys, 0, (rows - n) * keys * sizeof(A));
        gemm<A>(rows, wide, x.lk, {ds, keys, 1}, k, wide, dq, wide, false);
        gemm<A>(keys, wide, rows, {s, 1, keys}, g, wide, dv, wide, i > 0);
        gemm<A>(keys, wide, rows, {ds, 1, keys}, q, wide, dk, wide, i > 0);
        put<A>(dq.p, wide, u.at<T>(a.dq) + i * x.row(a.dq), x.row(a.dq), n, a, i, true);
      }
      put<A>(dk.p, wide, u.at<T>(a.dk), x.row(a.dk), x.lk, a, 0, true);
      put<A>(dv.p, wide, u.at<T>(a.dv), x.row(a.dv), x.lk, a, 0, false);
      sum_tokens<A, T>(u);
    }
  });
}

}  // namespace LATTE_ISA
}  // namespace latte
