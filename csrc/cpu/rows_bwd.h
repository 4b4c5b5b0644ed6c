// The gradients of rows_fwd.h in one pass over the rows: dx = dx_out + LN'(dh), dy = gate * dx, and the sums over a
// group's rows.
#pragma once
#include "rows_fwd.h"

namespace latte {
namespace LATTE_ISA {

enum Sum { kDGate, kDShift, kDScale, kDBias, kSums };

// Rows are summed in runs of 8, runs in chunks, chunks in float64. The sizes do not depend on the number of threads, so
// the bits of the result do not either, and long sums stay as exact as torch's pairwise ones.
constexpr int64_t kRun = 8, kChunk = 64;

// sum += run; run = 0
template <class A> LATTE_INLINE void fold(A* run, A* sum, int64_t n) {
  each_vec<A>(n, [&](int64_t i, auto lanes) LATTE_LAMBDA {
    store<A>(sum + i, load<A>(sum + i, lanes) + load<A>(run + i, lanes), lanes);
    store<A>(run + i, Vec<A>{}, lanes);
  });
}

template <class A, class X, class Y, class H, bool kResidual, bool kNorm>
void rows_backward(const RowBackward& a) {
  const int64_t d = a.d, groups = a.groups, per_group = groups ? a.rows / groups : 0;
  const int64_t chunks = (per_group + kChunk - 1) / kChunk;
  Scratch<A> partial(groups * chunks * kSums * d);
  const bool norm = kNorm && a.dh.p, residual = kResidual && a.dy.p, biased = residual && a.y_bias.p;
  split(groups * chunks, a.threads, [&](int64_t begin, int64_t end) {
    Scratch<A> gate(d), bias(d), scale1(d), dx(d), run(kSums * d);
    if (biased) widen<A>(a.y_bias, 0, 0, bias, d);
    else std::memset(bias, 0, d * sizeof(A));
    int64_t group = -1;
    for (int64_t c = begin; c < end; ++c) {
      if (c / chunks != group) {
        group = c / chunks;
        if (residual) widen<A>(a.gate, group, 0, gate, d);
        if (norm) widen<A>(a.scale, group, 1, scale1, d);
      }
      A* sum = partial + c * kSums * d;
      std::memset(sum, 0, kSums * d * sizeof(A));
      std::memset(run, 0, kSums * d * sizeof(A));
      A *dgate = run + kDGate * d, *dshift = run + kDShift * d, *dscale = run + kDScale * d, *dbias = run + kDBias * d;
      const int64_t first = group * per_group + c % chunks * kChunk;
      const int64_t last = min(first + kChunk, (group + 1) * per_group);
      for (int64_t r = first; r < last; ++r) {
        if (r > first && (r - first) % kRun == 0) fold<A>(run, sum, kSums * d);
        const X* from = a.dx_out.p ? row<X>(a.dx_out, r) : nullptr;
        if constexpr (kNorm) {
          const X* x = row<X>(a.x_out, r);
          if (norm) {
            const H* dh = row<H>(a.dh, r);
            const Moments<A> m = moments<A>(x, d, a.eps);
            Vec<A> s1 = {}, s2 = {};
            each_vec<A>(d, [&](int64_t i, auto n) LATTE_LAMBDA {
              const Vec<A> g = load<A>(dh + i, n), normed = (load<A>(x + i, n) - m.mean) * m.rstd;
              const Vec<A> scaled = g * load<A>(scale1 + i, n);
              s1 += scaled;
              s2 = fma(scaled, normed, s2);
              store<A>(dshift + i, load<A>(dshift + i, n) + g, n);
              store<A>(dscale + i, fma(g, normed, load<A>(dscale + i, n)), n);
            });
            const A m1 = hsum<A>(s1) / d, m2 = hsum<A>(s2) / d;
            each_vec<A>(d, [&](int64_t i, auto n) LATTE_LAMBDA {
              const Vec<A> normed = (load<A>(x + i, n) - m.mean) * m.rstd;
              const Vec<A> centred = fma(load<A>(dh + i, n), load<A>(scale1 + i, n), splat(-m1));
              const Vec<A> v = fma(normed, splat(-m2), centred);
              store<A>(dx + i, fma(v, splat(m.rstd), from ? load<A>(from + i, n) : Vec<A>{}), n);
            });
          }
        }
        if (!norm) {
          if (from) each_vec<A>(d, [&](int64_t i, auto n) LATTE_LAMBDA { store<A>(dx + i, load<A>(from + i, n), n); });
          else std::memset(dx, 0, d * sizeof(A));
        }
        if (a.dx.p) {
          X* to = row<X>(a.dx, r);
          each_vec<A>(d, [&](int64_t i, auto n) LATTE_LAMBDA { store<A>(to + i, load<A>(dx + i, n), n); });
        }
        if constexpr (kResidual) {
          if (residual) {
            const Y* y = row<Y>(a.y, r);
            Y* dy = row<Y>(a.dy, r);
            each_vec<A>(d, [&](int64_t i, auto n) LATTE_LAMBDA {
              const Vec<A> g = load<A>(dx + i, n), v = load<A>(y + i, n) + load<A>(bias + i, n);
              store<A>(dy + i, g * load<A>(gate + i, n), n);
              store<A>(dgate + i, fma(g, v, load<A>(dgate + i, n)), n);
              if (biased) store<A>(dbias + i, load<A>(dbias + i, n) + g, n);
            });
          }
        }
      }
      fold<A>(run, sum, kSums * d);
    }
  });
  // dy_bias = sum over groups of gate * (sum of dx); columns are split, so each sum stays in order
  split((d + 255) / 256, groups * chunks > 8 ? a.threads : 1, [&](int64_t begin, int64_t end) {
    const int64_t from = begin * 256, width = min(d, end * 256) - from;
    auto window = [&](Groups t, int64_t size) {
      return Groups{static_cast<char*>(t.p) + from * size, t.dtype, t.stride};
    };
    auto bytes = [](int64_t dtype) { return dtype == kF64 ? 8 : dtype == kF32 ? 4 : 2; };
    Scratch<double> total(width), all(width);
    Scratch<A> gate(width), result(width);
    std::memset(all, 0, width * sizeof(double));
    const Groups* out[kSums] = {&a.dgate, &a.dshift, &a.dscale, &a.dy_bias};
    for (int64_t g = 0; g < groups; ++g) {
      for (int kind = 0; kind < kSums; ++kind) {
        if (!out[kind]->p) continue;
        std::memset(total, 0, width * sizeof(double));
        for (int64_t c = g * chunks; c < (g + 1) * chunks; ++c) {
          const A* p = partial + (c * kSums + kind) * d + from;
          for (int64_t i = 0; i < width; ++i) total[i] += p[i];
        }
        if (kind == kDBias) {
          widen<A>(window(a.gate, bytes(a.gate.dtype)), g, 0, gate, width);
          for (int64_t i = 0; i < width; ++i) all[i] += gate[i] * total[i];
        } else {
          for (int64_t i = 0; i < width; ++i) result[i] = static_cast<A>(total[i]);
          narrow<A>(result, window(*out[kind], bytes(out[kind]->dtype)), g, width);
        }
      }
    }
    if (!a.dy_bias.p) return;
    for (int64_t i = 0; i < width; ++i) result[i] = static_cast<A>(all[i]);
    narrow<A>(result, window(a.dy_bias, bytes(a.dy_bias.dtype)), 0, width);
  });
}

}  // namespace LATTE_ISA
}  // namespace latte
