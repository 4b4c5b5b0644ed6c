// The mean over runs of `length` rows of LN(x) * (1 + scale) + shift, and its gradients; the normed rows stay in cache.
#include "rows_bwd.h"

namespace latte {
namespace LATTE_ISA {

// part += LN(row); returns what the row was normed by
template <class A, class X> LATTE_INLINE Moments<A> add_normed(const X* x, int64_t d, double eps, A* part) {
  const Moments<A> m = moments<A>(x, d, eps);
  each_vec<A>(d, [&](int64_t i, auto n) LATTE_LAMBDA {
    store<A>(part + i, fma(load<A>(x + i, n) - m.mean, splat(m.rstd), load<A>(part + i, n)), n);
  });
  return m;
}

template <class A, class X, class H> void pooled_forward(const PooledNorm& a) {
  const int64_t d = a.d, per_group = a.groups ? a.outputs / a.groups : 1;
  split(a.outputs, a.threads, [&](int64_t begin, int64_t end) {
    Scratch<A> sum(d), part(d), scale1(d), shift(d);
    int64_t group = -1;
    for (int64_t o = begin; o < end; ++o) {
      if (o / per_group != group) {
        group = o / per_group;
        widen<A>(a.scale, group, 1, scale1, d), widen<A>(a.shift, group, 0, shift, d);
      }
      std::memset(sum, 0, d * sizeof(A)), std::memset(part, 0, d * sizeof(A));
      for (int64_t l = 0; l < a.length; ++l) {
        if (l && l % kRun == 0) fold<A>(part, sum, d);
        add_normed<A>(row<X>(a.x, o * a.length + l), d, a.eps, part.p);
      }
      fold<A>(part, sum, d);
      H* h = static_cast<H*>(a.h) + o * d;
      const A share = A(1) / a.length;
      each_vec<A>(d, [&](int64_t i, auto n) LATTE_LAMBDA {
        store<A>(h + i, fma(load<A>(sum + i, n) * share, load<A>(scale1 + i, n), load<A>(shift + i, n)), n);
      });
    }
  });
}

template <class A, class X, class H> void pooled_backward(const PooledNorm& a) {
  const int64_t d = a.d, per_group = a.groups ? a.outputs / a.groups : 1;
  split(a.outputs, a.threads, [&](int64_t begin, int64_t end) {
    Scratch<A> sum(d), part(d), scale1(d), g(d);
    int64_t group = -1;
    for (int64_t o = begin; o < end; ++o) {
      if (o / per_group != group) group = o / per_group, widen<A>(a.scale, group, 1, scale1, d);
      // the gradient of each normed row: the same for all of a run
      const H* dh = static_cast<const H*>(a.h) + o * d;
      const A share = A(1) / a.length;
      Vec<A> s1 = {};
      each_vec<A>(d, [&](int64_t i, auto n) LATTE_LAMBDA {
        const Vec<A> v = keep<A>(load<A>(dh + i, n) * load<A>(scale1 + i, n) * share, n);
        s1 += v;
        store<A>(g + i, v, n);
      });
      const A m1 = hsum<A>(s1) / d;
      std::memset(sum, 0, d * sizeof(A)), std::memset(part, 0, d * sizeof(A));
      for (int64_t l = 0; l < a.length; ++l) {
        if (l && l % kRun == 0) fold<A>(part, sum, d);
        const X* x = row<X>(a.x, o * a.length + l);
        const Moments<A> m = add_normed<A>(x, d, a.eps, part.p);
        Vec<A> s2 = {};
        each_vec<A>(d, [&](int64_t i, auto n) LATTE_LAMBDA {
          s2 = fma(load<A>(g + i, n), (load<A>(x + i, n) - m.mean) * m.rstd, s2);
        });
        const A m2 = hsum<A>(s2) / d;
        X* dx = row<X>(a.dx, o * a.length + l);
        each_vec<A>(d, [&](int64_t i, auto n) LATTE_LAMBDA {
          const Vec<A> normed = (load<A>(x + i, n) - m.mean) * m.rstd;
          store<A>(dx + i, fma(normed, splat(-m2), load<A>(g + i, n) - m1) * m.rstd, n);
        });
      }
      fold<A>(part, sum, d);
      A* mean = static_cast<A*>(a.mean) + o * d;
      each_vec<A>(d, [&](int64_t i, auto n) LATTE_LAMBDA { store<A>(mean + i, load<A>(sum + i, n) * share, n); });
    }
  });
}

void pooled_norm_fwd(const PooledNorm& a) {
#if defined(LATTE_ISA_PORTABLE)
  if (a.x.dtype == kF64) return pooled_forward<double, double, double>(a);
#endif
  with_dtype(a.x.dtype, [&](auto x) {
    with_dtype(a.dtype, [&](auto h) {
      pooled_forward<float, typename decltype(x)::type, typename decltype(h)::type>(a);
    });
  });
}

void pooled_norm_bwd(const PooledNorm& a) {
#if defined(LATTE_ISA_PORTABLE)
  if (a.x.dtype == kF64) return pooled_backward<double, double, double>(a);
#endif
  with_dtype(a.x.dtype, [&](auto x) {
    with_dtype(a.dtype, [&](auto h) {
      pooled_backward<float, typename decltype(x)::type, typename decltype(h)::type>(a);
    });
  });
}

}  // namespace LATTE_ISA
}  // namespace latte
