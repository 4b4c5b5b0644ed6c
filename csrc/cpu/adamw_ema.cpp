// AdamW, the average of the weights and their copy in 16 bits in one pass, rounded where torch's three passes round.
#include "parallel.h"

namespace latte {
namespace LATTE_ISA {

constexpr int64_t kChunk = 1 << 14;  // values that a thread takes at a time

// a * b + c, rounded once at every level, as torch rounds it: a product of fp32 is exact in fp64
LATTE_INLINE Vec<float> fused(Vec<float> a, Vec<float> b, Vec<float> c) {
#if defined(LATTE_512) || defined(LATTE_ISA_AVX2)
  return fma(a, b, c);
#else
  typedef double Wide __attribute__((vector_size(2 * kBytes)));
  const Wide sum = __builtin_convertvector(a, Wide) * __builtin_convertvector(b, Wide) + __builtin_convertvector(c, Wide);
  return __builtin_convertvector(sum, Vec<float>);
#endif
}

// from + weight * (to - from), from the nearer end, as torch has it
struct Lerp {
  Vec<float> factor;
  bool near;
  explicit Lerp(double weight) : near(static_cast<float>(weight) < 0.5f) {
    factor = splat(near ? static_cast<float>(weight) : static_cast<float>(weight) - 1.0f);
  }
  LATTE_INLINE Vec<float> operator()(Vec<float> from, Vec<float> to) const {
    return fused(factor, to - from, near ? from : to);
  }
};

// x, rounded: the compiler may not add to it in the operation that made it
LATTE_INLINE Vec<float> rounded(Vec<float> x) {
#if defined(LATTE_512)
  asm("" : "+v"(x));
#elif defined(LATTE_ISA_AVX2)
  asm("" : "+x"(x));
#endif
  return x;
}

struct Step {
  Lerp moment, average;
  Vec<float> keep, beta2, rest2, bound, eps, rate;
  Step(const AdamwEma& a, double number)
      : moment(1 - a.beta1),
        average(1 - a.decay),
        keep(splat(static_cast<float>(1 - a.lr * a.weight_decay))),
        beta2(splat(static_cast<float>(a.beta2))),
        rest2(splat(static_cast<float>(1 - a.beta2))),
        bound(splat(static_cast<float>(std::sqrt(1 - std::pow(a.beta2, number))))),
        eps(splat(static_cast<float>(a.eps))),
        rate(splat(static_cast<float>(-a.lr / (1 - std::pow(a.beta1, number))))) {}
};

template <class T> LATTE_INLINE void update(const Trained& t, const Step& s, int64_t first, int64_t n) {
  each_vec<float>(n, [&](int64_t i, auto lanes) LATTE_LAMBDA {
    i += first;
    const Vec<float> g = load<float>(t.gradient + i, lanes);
    const Vec<float> m = s.moment(load<float>(t.moment + i, lanes), g);
    const Vec<float> v = fused(s.rest2 * g, g, rounded(load<float>(t.square + i, lanes) * s.beta2));
    const Vec<float> w = rounded(load<float>(t.weight + i, lanes) * s.keep) + s.rate * m / (root(v) / s.bound + s.eps);
    store<float>(t.moment + i, m, lanes);
    store<float>(t.square + i, v, lanes);
    store<float>(t.weight + i, w, lanes);
    if (t.average) store<float>(t.average + i, s.average(load<float>(t.average + i, lanes), w), lanes);
    if (t.copy) store<float>(static_cast<T*>(t.copy) + i, w, lanes);
  });
}

void adamw_ema(const AdamwEma& a) {
  Scratch<int64_t> chunks(a.count + 1);  // before each tensor
  chunks[0] = 0;
  for (int64_t i = 0; i < a.count; ++i) chunks[i + 1] = chunks[i] + (a.tensors[i].values + kChunk - 1) / kChunk;
  split(chunks[a.count], a.threads, [&](int64_t begin, int64_t end) {
    int64_t i = 0;
    for (int64_t c = begin; c < end; ++c) {
      while (c >= chunks[i + 1]) ++i;
      const Trained& t = a.tensors[i];
      const Step step(a, *t.step);
      const int64_t first = (c - chunks[i]) * kChunk, n = min(kChunk, t.values - first);
      with_dtype(t.copy_dtype, [&](auto type) { update<typename decltype(type)::type>(t, step, first, n); });
    }
  });
}

}  // namespace LATTE_ISA
}  // namespace latte
