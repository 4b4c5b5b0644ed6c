// Every output phase of a transposed convolution is a small dense correlation: no zeros are inserted, no columns built
// and folded. The same product with a step through its input is the gradient of the input.
#include "conv_direct.h"
#include "conv_product.h"

namespace latte {
namespace LATTE_ISA {

// Where the 16-pixel tiles of one (phase, time) plane start: along each row, or along the padded plane if that is fewer
struct Tiling {
  const Grid& g;
  int64_t wide, rows, per_row, tiles;
  bool flat;
  Tiling(const Grid& g, int64_t rows) : g(g), wide(g.w.line.count(0)), rows(rows), per_row((wide + 15) / 16) {
    const int64_t linear = rows ? ((rows - 1) * g.w.size + wide + 15) / 16 : 0;
    flat = g.w.line.in_step == 1 && g.h.line.in_step == 1 && linear < rows * per_row;
    tiles = flat ? linear : rows * per_row;
  }
  int64_t start(int64_t i) const {
    if (flat) return 16 * i * g.pitch;
    return (i / per_row * g.h.line.in_step * g.w.size + i % per_row * 16 * g.w.line.in_step) * g.pitch;
  }
  // Finds the parts of tile i that are output; s_row and s_pixel are the output's strides in this phase
  int64_t runs(int64_t i, int64_t s_row, int64_t s_pixel, Run* to) const {
    int64_t n = 0;
    for (int64_t p = 0; p < 16;) {
      const int64_t row = flat ? (16 * i + p) / g.w.size : i / per_row;
      const int64_t at = flat ? (16 * i + p) % g.w.size : i % per_row * 16 + p;
      const int64_t left = min(16 - p, wide - at), skip = flat ? g.w.size - at : 16;
      if (row >= rows) break;
      const int64_t phases = g.w.line.phases, first = at * phases;
      if (left > 0) to[n++] = {p, left, row * s_row + first * s_pixel, min(left * phases, g.w.line.out - first)};
      p += skip;
    }
    return n;
  }
};

template <class A, class T, class O> void correlate(const Correlation& a) {
  if (is_direct(a)) return direct<A, T, O>(a);
  using P = typename Packed<A, T>::type;
  const Weights<T, P> weights(a);
  const Grid g(a, kTiled<P> ? weights.steps * 32 : up_to(a.depth, 16));
  const int64_t pixels_beyond = 32 * g.w.line.in_step * g.pitch;  // a tile reads past its last used row
  Scratch<P> x(a.batch * a.groups * g.volume() + pixels_beyond), w(weights.size());
  Scratch<A> bias(a.groups * weights.cols);
  pack_input<T, P>(a, g, x);
  std::memset(static_cast<void*>(x + a.batch * a.groups * g.volume()), 0, pixels_beyond * sizeof(P));
  weights.pack(w);
  for (int64_t i = 0; i < a.groups * weights.cols; ++i) {
    const int64_t group = i / weights.cols, c = i % weights.cols;
    bias[i] = a.bias && c < a.cols ? widened(static_cast<const T*>(a.bias)[group * a.cols + c]) : A(0);
  }

  const Line &lt = g.t.line, &lh = g.h.line, &lw = g.w.line;
  const int64_t block = min(kMostCols, weights.cols), parts = (weights.cols + block - 1) / block;
  const int64_t batch_tiles = max(2, 512 / (block * lw.phases) * 2);  // products of one item stay in L2
  const int64_t most_t = lt.count(0), most = Tiling(g, lh.count(0)).tiles;
  const int64_t runs_t = (most + batch_tiles - 1) / batch_tiles;
  const int64_t taps_most = a.kernel[0] * a.kernel[1] * a.kernel[2];
  const int64_t items = lt.phases * lh.phases * a.groups * parts * a.batch * most_t * runs_t;
  split(items, a.threads, [&](int64_t begin, int64_t end) {
    Scratch<A> c(lw.phases * batch_tiles * 16 * block), square(lw.phases * 256), line(lw.phases * 16 + 16);
    Scratch<int64_t> starts(batch_tiles);
    Taps taps(taps_most);
    Chunks chunks(kTiled<P> ? 1 : Chunks::most(taps_most, a.depth));
#if defined(LATTE_TILED)
    Tiles tiles_on;
#endif
    for (int64_t item = begin; item < end; ++item) {
      // pixels vary fastest, so that the matrices of a phase stay in L2
      int64_t rest = item;
      auto next = [&rest](int64_t n) { const int64_t i = rest % n; rest /= n; return i; };
      const int64_t run = next(runs_t), m_t = next(most_t), n = next(a.batch), part = next(parts);
      const int64_t group = next(a.groups), f_h = next(lh.phases), f_t = rest;
      const Tiling tiling(g, lh.count(f_h));
      const int64_t first = run * batch_tiles, tiles = min(batch_tiles, tiling.tiles - first);
      if (m_t >= lt.count(f_t) || tiles <= 0) continue;
      const int64_t col = part * block, cols = min(block, weights.cols - col), real = min(cols, a.cols - col);
      const P* plane = x + ((n * a.groups + group) * g.t.size + m_t * lt.in_step) * g.h.size * g.w.size * g.pitch;
      for (int64_t i = 0; i < tiles; ++i) starts[i] = tiling.start(first + i);
      const int64_t c_plane = batch_tiles * 16 * block;
      for (int64_t f_w = 0; f_w < lw.phases && f_w < lw.out; ++f_w) {
        taps.find(a, g, {f_t, f_h, f_w}, weights.matrix);
        multiply<A, P>(plane, starts, tiles, lw.in_step * g.pitch, taps, w + group * taps_most * weights.matrix,
                       a.depth, weights.steps, col, cols, c + f_w * c_plane, chunks);
      }
      const int64_t* s = a.out.stride;
      O* out = static_cast<O*>(a.out.p) + n * s[0] + (group * a.cols + col) * s[1] + (m_t * lt.phases + f_t) * s[2] +
               f_h * s[3];
      for (int64_t i = 0; i < tiles; ++i) {
        Run runs[16];
        const int64_t found = tiling.runs(first + i, lh.phases * s[3], s[4], runs);
        store_tile<A, O>(c + i * 16 * cols, cols, c_plane, lw.phases, runs, found, real,
                         bias + group * weights.cols + col, out, s[1], s[4], square, line);
      }
    }
  });
}

// For each tap dw = x^T dy with dy's pixels at the tap's distance, a chunk of pixels at a time
template <class A, class T> void weight_gradient(const WeightGradient& a) {
  using P = typename Packed<A, T>::type;
  constexpr int64_t kChunk = 512;
  const Correlation& d = a.dy;
  const int64_t cols = up_to(d.depth, 16), rows = up_to(a.channels, 16), taps = d.kernel[0] * d.kernel[1] * d.kernel[2];
  const Grid g(d, kTiled<P> ? up_to(d.depth, 32) : cols);
  const int64_t pixels = d.out_size[0] * d.out_size[1] * d.out_size[2], padded = up_to(pixels, 32);
  const int64_t units = d.batch * d.groups;
  Scratch<P> y(units * g.volume()), x(units * rows * padded), zero(cols);
  Scratch<int64_t> at(padded);
  pack_input<T, P>(d, g, y);
  std::memset(static_cast<void*>(zero.p), 0, cols * sizeof(P));
  for (int64_t i = 0; i < padded; ++i) {
    const int64_t w = i % d.out_size[2], h = i / d.out_size[2] % d.out_size[1], t = i / d.out_size[2] / d.out_size[1];
    const int64_t row = t * g.t.line.in_step * g.h.size + h * g.h.line.in_step;
    at[i] = i < pixels ? (row * g.w.size + w * g.w.line.in_step) * g.pitch : -1;
  }
  split(units * rows, a.threads, [&](int64_t begin, int64_t end) {  // x as (channels, pixels), edges repeated
    for (int64_t r = begin; r < end; ++r) {
      P* to = x + r * padded;
      const int64_t c = r % rows, unit = r / rows, n = unit / d.groups, group = unit % d.groups;
      const int64_t* s = a.x.stride;
      const T* from = static_cast<const T*>(a.x.p) + n * s[0] + (group * a.channels + c) * s[1];
      auto inside = [&](int64_t i, int axis) { return max(0, min(i - a.before[axis], a.x_size[axis] - 1)); };
      if (c < a.channels) {
        for (int64_t t = 0; t < d.out_size[0]; ++t)
          for (int64_t h = 0; h < d.out_size[1]; ++h) {
            const T* row = from + inside(t, 0) * s[2] + inside(h, 1) * s[3];
            for (int64_t w = 0; w < d.out_size[2]; ++w) *to++ = packed<P>(row[inside(w, 2) * s[4]]);
          }
      }
      P* last = x + (r + 1) * padded;
      std::memset(static_cast<void*>(to), 0, (last - to) * sizeof(P));
    }
  });
  // a tap's rows are split only where there are too few taps for the threads
  const int64_t high = d.groups * taps >= 4 * a.threads ? rows : min(rows, 64), parts = (rows + high - 1) / high;
  split(d.groups * taps * parts, a.threads, [&](int64_t begin, int64_t end) {
    Scratch<P> b(kChunk * cols);
    Scratch<A> c(high * cols), sums(kTiled<P> ? 1 : 2 * high * cols);
#if defined(LATTE_TILED)
    Tiles tiles_on;
#endif
    for (int64_t item = begin; item < end; ++item) {
      const int64_t part = item % parts, tap = item / parts % taps, group = item / parts / taps;
      const int64_t first = part * high, n_rows = min(high, rows - first);
      const int64_t kt = tap / d.kernel[2] / d.kernel[1], kh = tap / d.kernel[2] % d.kernel[1], kw = tap % d.kernel[2];
      const int64_t row = (g.t.lo + g.t.offset(0, kt)) * g.h.size + g.h.lo + g.h.offset(0, kh);
      const int64_t move = (row * g.w.size + g.w.lo + g.w.offset(0, kw)) * g.pitch;
      for (int64_t n = 0; n < d.batch; ++n)
        for (int64_t k = 0; k < padded; k += kChunk) {
          const int64_t depth = min(kChunk, padded - k), unit = n * d.groups + group;
          const P *lhs = x + (unit * rows + first) * padded + k, *from = y + unit * g.volume() + move;
          auto pixel = [&](int64_t i) LATTE_LAMBDA { return at[k + i] < 0 ? zero.p : from + at[k + i]; };
          const bool add = n > 0 || k > 0;
#if defined(LATTE_TILED)
          if constexpr (kTiled<P>) {
            for (int64_t i = 0; i < depth; i += 2) {
              const P *even = pixel(i), *odd = pixel(i + 1);
              for (int64_t j = 0; j < cols; j += 16)
                pack_pairs(even + j, 2, odd - even, b + j * depth + i / 32 * kTile + i % 32 * 16);
            }
            tile_gemm(n_rows / 16, cols / 16, depth / 32, lhs, padded, b, c, cols, add);
            continue;
          }
#endif
          if constexpr (!kTiled<P>) {
            for (int64_t i = 0; i < depth; ++i) std::memcpy(b + i * cols, pixel(i), cols * sizeof(P));
            const int64_t size = n_rows * cols;
            A *few = sums, *chunk = sums + size;
            if (!add) std::memset(c, 0, size * sizeof(A));
            std::memset(chunk, 0, size * sizeof(A));
            for (int64_t i = 0; i < depth; i += kTerms) {
              gemm<A>(n_rows, cols, min(kTerms, depth - i), {lhs + i, padded, 1}, b + i * cols, cols, few, cols, false);
              add_to<A>(chunk, few, size);
            }
            add_to<A>(c, chunk, size);
          }
        }
      T* out = static_cast<T*>(a.dw) + ((group * taps + tap) * a.channels + first) * d.depth;
      for (int64_t i = 0; i < min(n_rows, a.channels - first); ++i)
        each_vec<A>(d.depth, [&](int64_t j, auto n) LATTE_LAMBDA {
          store<A>(out + i * d.depth + j, load<A>(c + i * cols + j, n), n);
        });
    }
  });
}

void conv_correlate(const Correlation& a) {
#if defined(LATTE_ISA_PORTABLE)
  if (a.in.dtype == kF64) return correlate<double, double, double>(a);
#endif
  with_dtype(a.in.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    if (a.out.dtype == a.in.dtype) correlate<float, T, T>(a);
    else correlate<float, T, float>(a);
  });
}

void conv_weight_gradient(const WeightGradient& a) {
#if defined(LATTE_ISA_PORTABLE)
  if (a.x.dtype == kF64) return weight_gradient<double, double>(a);
#endif
  with_dtype(a.x.dtype, [&](auto t) { weight_gradient<float, typename decltype(t)::type>(a); });
}

}  // namespace LATTE_ISA
}  // namespace latte
