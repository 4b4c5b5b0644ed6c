// One sequence of attention: a frame's patches (space) or a patch position's frames (time), of one head, found by
// strides.
#pragma once
#include "parallel.h"

namespace latte {
namespace LATTE_ISA {

struct Axis {
  const Attention& a;
  bool time;
  int64_t lq, lk, outer;
  Axis(const Attention& args, bool is_time)
      : a(args), time(is_time), lq(is_time ? a.f : a.nq), lk(is_time ? a.f : a.nk), outer(is_time ? a.nq : a.f) {}
  int64_t units() const { return a.b * outer * a.h; }
  int64_t row(const Heads& t) const { return time ? t.sf : t.sn; }
  int64_t lse_row() const { return time ? a.nq * a.h : a.h; }
};

// Unit u of an axis; heads are neighbours, so that a thread walks along memory.
struct Unit {
  const Axis& axis;
  int64_t h, o, b;
  Unit(const Axis& x, int64_t u) : axis(x), h(u % x.a.h), o(u / x.a.h % x.outer), b(u / x.a.h / x.outer) {}
  Unit(const Unit& u, int64_t heads_on) : axis(u.axis), h(u.h + heads_on), o(u.o), b(u.b) {}
  // the unit whose rows are needed after these, or this one at the end
  Unit next() const {
    const int64_t u = (b * axis.outer + o) * axis.a.h + h + 1;
    return Unit(axis, u < axis.units() ? u : u - 1);
  }
  template <class T> T* at(const Heads& t) const {
    return static_cast<T*>(t.p) + b * t.sb + o * (axis.time ? t.sn : t.sf) + h * t.sh;
  }
  template <class T> const T* bias(int which) const {
    const T* p = static_cast<const T*>(axis.a.bias[which]);
    return p ? p + h * axis.a.dim : nullptr;
  }
  float* lse() const {
    const Attention& a = axis.a;
    return a.lse + (axis.time ? (b * a.f * a.nq + o) * a.h + h : (b * a.f + o) * a.nq * a.h + h);
  }
  const uint8_t* mask() const { return axis.a.key_mask ? axis.a.key_mask + b * axis.a.mask_stride : nullptr; }
};

// Rotates the pairs of one row by the angles of `position`, or back.
template <class A> LATTE_INLINE void rotate(A* x, const Attention& a, int64_t position, bool back) {
  const int64_t first = position * a.dim / 2;
  const A *c = static_cast<const A*>(a.cos) + first, *s = static_cast<const A*>(a.sin) + first;
  for (int64_t i = 0; i < a.dim / 2; ++i) {
    const A even = x[2 * i], odd = x[2 * i + 1], sin = back ? -s[i] : s[i];
    x[2 * i] = even * c[i] - odd * sin;
    x[2 * i + 1] = even * sin + odd * c[i];
  }
}

// A work item is a run of query rows of one unit: all of them, or some where units are too few for the threads.
struct Items {
  int64_t parts, rows;
  Items(const Axis& x, int64_t step) {
    const int64_t units = x.units(), threads = x.a.threads;
    parts = units >= 4 * threads ? 1 : min((x.lq + step - 1) / step, (4 * threads + units - 1) / units);
    rows = ((x.lq + parts - 1) / parts + step - 1) / step * step;
    parts = (x.lq + rows - 1) / rows;
  }
};

// Writes the sums over a sequence's tokens of dq, dk and dv, which were just written and are still in the cache.
template <class A, class T> void sum_tokens(const Unit& u) {
  const Attention& a = u.axis.a;
  if (!a.sums) return;
  const Heads* const grads[] = {&a.dq, &a.dk, &a.dv};
  for (int t = 0; t < 3; ++t) {
    const T* from = u.at<const T>(*grads[t]);
    const int64_t n = t ? u.axis.lk : u.axis.lq, stride = u.axis.row(*grads[t]);
    A* to = static_cast<A*>(a.sums) + (((u.b * u.axis.outer + u.o) * 3 + t) * a.h + u.h) * a.dim;
    each_vec<A>(a.dim, [&](int64_t k, auto lanes) LATTE_LAMBDA {
      Vec<A> sum = {};
      for (int64_t i = 0; i < n; ++i) sum += load<A>(from + i * stride + k, lanes);
      store<A>(to + k, sum, lanes);
    });
  }
}

// Adds the sequences' sums in their order, which no number of threads changes, and writes them as dbias.
template <class A> void sum_sequences(const Axis& x) {
  constexpr int64_t kColumns = 64;
  const Attention& a = x.a;
  const int64_t d = 3 * a.h * a.dim, rows = a.b * x.outer;
  Scratch<A> total(d);
  split((d + kColumns - 1) / kColumns, a.threads, [&](int64_t begin, int64_t end) {
    for (int64_t first = begin * kColumns; first < end * kColumns; first += kColumns) {
      const int64_t n = min(kColumns, d - first);
      double sum[kColumns] = {};
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t i = 0; i < n; ++i) sum[i] += static_cast<const A*>(a.sums)[r * d + first + i];
      for (int64_t i = 0; i < n; ++i) total[first + i] = static_cast<A>(sum[i]);
    }
  });
  narrow<A>(total, a.dbias, 0, d);
}

template <class A> LATTE_INLINE A log2e() { return static_cast<A>(1.4426950408889634); }
template <class A> LATTE_INLINE A infinity() { return static_cast<A>(__builtin_huge_val()); }

}  // namespace LATTE_ISA
}  // namespace latte
