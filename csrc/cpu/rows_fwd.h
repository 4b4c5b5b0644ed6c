// x_out = x + gate * (y + y_bias) + pos, then h = LN(x_out) * (1 + scale) + shift, one row at a time in cache.
#pragma once
#include <type_traits>

#include "rows_int8.h"

namespace latte {
namespace LATTE_ISA {

template <class A> struct Moments { A mean, rstd; };

// Two passes over a row that is in L1; four accumulators hide the latency of the additions.
template <class A, class X> LATTE_INLINE Moments<A> moments(const X* x, int64_t d, double eps) {
  constexpr int L = kLanes<A>;
  Vec<A> s[4] = {};
  int64_t i = 0;
  for (; i + 4 * L <= d; i += 4 * L)
    for (int u = 0; u < 4; ++u) s[u] += load<A>(x + i + u * L);
  each_vec<A>(d - i, [&](int64_t j, auto n) LATTE_LAMBDA { s[0] += load<A>(x + i + j, n); });
  const A mean = hsum<A>((s[0] + s[1]) + (s[2] + s[3])) / d;
  Vec<A> q[4] = {};
  for (i = 0; i + 4 * L <= d; i += 4 * L)
    for (int u = 0; u < 4; ++u) {
      const Vec<A> c = load<A>(x + i + u * L) - mean;
      q[u] = fma(c, c, q[u]);
    }
  each_vec<A>(d - i, [&](int64_t j, auto n) LATTE_LAMBDA {
    const Vec<A> c = keep<A>(load<A>(x + i + j, n) - mean, n);
    q[0] = fma(c, c, q[0]);
  });
  const double var = double(hsum<A>((q[0] + q[1]) + (q[2] + q[3]))) / d;
  return {mean, static_cast<A>(1 / std::sqrt(var + eps))};
}

template <class A, class X, class Y, class H, bool kResidual, bool kNorm>
void rows_forward(const RowForward& a) {
  const int64_t d = a.d, per_group = a.groups ? a.rows / a.groups : 1;
  split(a.rows, a.threads, [&](int64_t begin, int64_t end) {
    constexpr bool kInt8 = std::is_same<H, int8_t>::value;
    Scratch<A> gate(d), bias(d), scale1(d), shift(d), pos(d), wide(kInt8 ? d : 0);
    if (kResidual && a.y_bias.p) widen<A>(a.y_bias, 0, 0, bias, d);
    int64_t group = -1;
    for (int64_t r = begin; r < end; ++r) {
      if (r / per_group != group) {
        group = r / per_group;
        if (kResidual) widen<A>(a.gate, group, 0, gate, d);
        if (kNorm) widen<A>(a.scale, group, 1, scale1, d), widen<A>(a.shift, group, 0, shift, d);
      }
      const X* x = row<X>(a.x, r);
      if constexpr (kResidual) {
        const Y* y = row<Y>(a.y, r);
        X* out = row<X>(a.x_out, r);
        // x + gate y has a loop of its own; other terms are rare, or cheap beside the memory traffic
        if (!a.y_bias.p && !a.pos.p) {
          each_vec<A>(d, [&](int64_t i, auto n) LATTE_LAMBDA {
            store<A>(out + i, fma(load<A>(gate + i, n), load<A>(y + i, n), load<A>(x + i, n)), n);
          });
        } else {
          if (a.pos.p) {
            const Groups from{row<char>(a.pos, 0), a.pos.dtype, 1};
            widen<A>(from, row<char>(a.pos, r) - row<char>(a.pos, 0), 0, pos, d);
          }
          each_vec<A>(d, [&](int64_t i, auto n) LATTE_LAMBDA {
            Vec<A> v = load<A>(y + i, n);
            if (a.y_bias.p) v += load<A>(bias + i, n);
            v = fma(load<A>(gate + i, n), v, load<A>(x + i, n));
            if (a.pos.p) v += load<A>(pos + i, n);
            store<A>(out + i, v, n);
          });
        }
        x = out;
      }
      if constexpr (kNorm) {
        const Moments<A> m = moments<A>(x, d, a.eps);
        H* h = row<H>(a.h, r);
        auto modulated = [&](int64_t i, auto n) LATTE_LAMBDA {
          const Vec<A> normed = (load<A>(x + i, n) - m.mean) * m.rstd;
          return fma(normed, load<A>(scale1 + i, n), load<A>(shift + i, n));
        };
        if constexpr (kInt8) {
          a.h_scale[r] = rounded_row(d, wide, h, a.h.dtype == kU8, modulated);
        } else {
          each_vec<A>(d, [&](int64_t i, auto n) LATTE_LAMBDA { store<A>(h + i, modulated(i, n), n); });
        }
      }
    }
  });
}

}  // namespace LATTE_ISA
}  // namespace latte
