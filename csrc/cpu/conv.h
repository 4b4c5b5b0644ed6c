// Where each output of a (transposed) 3-D convolution finds its inputs: phases, taps and halos along one axis, and the
// zero- or edge-padded channels-last copy of the input that makes every tap a constant distance.
#pragma once
#include "parallel.h"
#if defined(LATTE_TILED)
#include "tiles.h"
#endif

namespace latte {
namespace LATTE_ISA {

LATTE_INLINE int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
LATTE_INLINE int64_t up_to(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// bf16 stays bf16 where tiles multiply it; all other types are widened when they are packed
template <class A, class T> struct Packed { using type = A; };
#if defined(LATTE_TILED)
template <> struct Packed<float, bf16> { using type = bf16; };
#endif
template <class P> constexpr bool kTiled = sizeof(P) == 2;

LATTE_INLINE float widened(bf16 x) { return bits<float>(uint32_t(x.bits) << 16); }
LATTE_INLINE float widened(f16 x) { return half_to_float(x.bits); }
LATTE_INLINE float widened(float x) { return x; }
LATTE_INLINE double widened(double x) { return x; }
template <class P, class T> LATTE_INLINE P packed(T x) {
  if constexpr (sizeof(P) == sizeof(T)) return x;
  else return widened(x);
}

// Output o reads input i through tap k where, transposed, o = i s - p + k d, and otherwise i = o s - p + k d. Outputs
// o = f + steps m of one phase f meet the same taps, each at a constant i - m in_step.
struct Line {
  int64_t in, out, kernel, stride, padding, dilation, phases, in_step;
  Line(const Correlation& a, int axis)
      : in(a.in_size[axis]), out(a.out_size[axis]), kernel(a.kernel[axis]), stride(a.stride[axis]),
        padding(a.padding[axis]), dilation(a.dilation[axis]), phases(a.transposed ? stride : 1),
        in_step(a.transposed ? 1 : stride) {}
  int64_t count(int64_t f) const { return f < out ? (out - f + phases - 1) / phases : 0; }
};

// One axis of the padded copy: `lo` and `hi` elements on either side of the input
struct Halo {
  int64_t lo = 0, hi = 0, size;
  Line line;
  bool transposed;
  Halo(const Correlation& a, int axis) : line(a, axis), transposed(a.transposed) {
    for (int64_t f = 0; f < line.phases; ++f)
      for (int64_t k = 0; k < line.kernel && line.count(f); ++k) {
        if (!hits(f, k)) continue;
        lo = max(lo, -offset(f, k));
        hi = max(hi, offset(f, k) + (line.count(f) - 1) * line.in_step - (line.in - 1));
      }
    size = lo + line.in + hi;
  }
  bool hits(int64_t f, int64_t k) const {
    return !transposed || (f + line.padding - k * line.dilation) % line.stride == 0;
  }
  int64_t offset(int64_t f, int64_t k) const {
    return transposed ? (f + line.padding - k * line.dilation) / line.stride : k * line.dilation - line.padding;
  }
};

// (B, groups, T, H, W, pitch) with halos
struct Grid {
  Halo t, h, w;
  int64_t pitch;
  Grid(const Correlation& a, int64_t pitch) : t(a, 0), h(a, 1), w(a, 2), pitch(pitch) {}
  int64_t volume() const { return t.size * h.size * w.size * pitch; }
};

// Copies n pixels of `channels` channels from any strides to rows of `pitch`, zero beyond the channels
template <class T, class P>
void pack_pixels(const T* from, int64_t s_channel, int64_t s_pixel, int64_t channels, int64_t n, P* to, int64_t pitch) {
#if defined(LATTE_TILED)
  if constexpr (sizeof(T) == 2 || sizeof(T) == 4) {
    if (s_pixel == 1) {
      constexpr int64_t kWide = sizeof(P) == 2 ? 32 : 16;
      alignas(64) P block[16 * kWide];
      for (int64_t i = 0; i < n; i += 16) {
        const int lanes = static_cast<int>(min(16, n - i));
        for (int64_t c = 0; c < pitch; c += kWide) {
          Vec<float> v[16];
          for (int64_t j = 0; j < 16; ++j) {
            const T* p = from + i;
            auto at = [&](int64_t channel) LATTE_LAMBDA {
              return channel >= channels ? Vec<float>{} : lanes == 16 ? load<float>(p + channel * s_channel)
                                                                      : load<float>(p + channel * s_channel, lanes);
            };
            if constexpr (sizeof(P) == 2)
              v[j] = bits<Vec<float>>((bits<U32>(at(c + 2 * j)) >> 16) | bits<U32>(at(c + 2 * j + 1)));
            else
              v[j] = at(c + j);
          }
          if (lanes == 16) {
            transpose16(v, 64, to + i * pitch + c, pitch * sizeof(P));
          } else {
            transpose16(v, 64, block, 64);
            for (int j = 0; j < lanes; ++j) std::memcpy(to + (i + j) * pitch + c, block + j * kWide, 64);
          }
        }
      }
      return;
    }
  }
#endif
  for (int64_t i = 0; i < n; ++i) {
    P* row = to + i * pitch;
    const T* p = from + i * s_pixel;
    if (s_channel == 1)
      for (int64_t c = 0; c < channels; ++c) row[c] = packed<P>(p[c]);
    else
      for (int64_t c = 0; c < channels; ++c) row[c] = packed<P>(p[c * s_channel]);
    if (pitch > channels) std::memset(static_cast<void*>(row + channels), 0, (pitch - channels) * sizeof(P));
  }
}

// Writes the padded copy; its halo is zero, or the nearest pixel if a.replicate
template <class T, class P> void pack_input(const Correlation& a, const Grid& g, P* to) {
  const int64_t rows = a.batch * a.groups * g.t.size * g.h.size;
  const int64_t in_t = g.t.line.in, in_h = g.h.line.in, in_w = g.w.line.in;
  const int64_t* s = a.in.stride;
  split(rows, a.threads, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      int64_t h = r % g.h.size - g.h.lo, t = r / g.h.size % g.t.size - g.t.lo;
      const int64_t unit = r / g.h.size / g.t.size, n = unit / a.groups, group = unit % a.groups;
      P* row = to + r * g.w.size * g.pitch;
      const bool inside = h >= 0 && h < in_h && t >= 0 && t < in_t;
      if (!inside && !a.replicate) {
        std::memset(static_cast<void*>(row), 0, g.w.size * g.pitch * sizeof(P));
        continue;
      }
      h = max(0, min(h, in_h - 1));
      t = max(0, min(t, in_t - 1));
      const T* from = static_cast<const T*>(a.in.p) + n * s[0] + group * a.depth * s[1] + t * s[2] + h * s[3];
      P* centre = row + g.w.lo * g.pitch;
      pack_pixels(from, s[1], s[4], a.depth, in_w, centre, g.pitch);
      for (int64_t i = 0; i < g.w.size; ++i) {
        if (i == g.w.lo) i += in_w;
        if (i >= g.w.size) break;
        P* pixel = row + i * g.pitch;
        const P* edge = i < g.w.lo ? centre : centre + (in_w - 1) * g.pitch;
        if (a.replicate) std::memcpy(static_cast<void*>(pixel), edge, g.pitch * sizeof(P));
        else std::memset(static_cast<void*>(pixel), 0, g.pitch * sizeof(P));
      }
    }
  });
}

// One matrix (depth x cols) a group and tap, as panels (depth x 16), or as tiles (columns, steps) where tiles multiply
// bf16
template <class T, class P> struct Weights {
  const Correlation& a;
  int64_t taps, steps, cols, matrix;
  Weights(const Correlation& a)
      : a(a), taps(a.kernel[0] * a.kernel[1] * a.kernel[2]), steps(up_to(a.depth, 32) / 32), cols(up_to(a.cols, 16)),
        matrix(kTiled<P> ? steps * 32 * cols : a.depth * cols) {}
  int64_t size() const { return a.groups * taps * matrix; }

  void pack(P* to) const {
    const int64_t pairs = kTiled<P> ? steps * 16 : a.depth, per = kTiled<P> ? 2 : 1;
    split(a.groups * pairs, a.threads, [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; ++item) {
        const int64_t group = item / pairs, r = item % pairs * per;
        const T* from = static_cast<const T*>(a.w) + group * a.w_stride[0] + r * a.w_stride[1];
        for (int64_t c = 0; c < cols; c += 16) {
          P* at = to + group * taps * matrix;
          if (kTiled<P>) at += (c / 16 * steps + r / 32) * 512 + r % 32 * 16;
          else at += c * a.depth + r * 16;
          for (int64_t k = 0; k < taps; k += 16)
            block(from + c * a.w_stride[2] + k, r, c, min(16, taps - k), at + k * matrix);
        }
      }
    });
  }

  // Packs up to 16 taps of 16 columns at reduction row r (and r + 1)
  void block(const T* from, [[maybe_unused]] int64_t r, int64_t c, int64_t n, P* to) const {
    [[maybe_unused]] const int64_t s_row = a.w_stride[1];
    const int64_t s_col = a.w_stride[2], wide = min(16, a.cols - c);
#if defined(LATTE_TILED)
    if constexpr (sizeof(T) <= 4) {
      Vec<float> v[16];
      for (int64_t j = 0; j < 16; ++j) {
        auto at = [&](int64_t row) LATTE_LAMBDA {
          if (j >= wide || r + row >= a.depth) return Vec<float>{};
          const T* p = from + j * s_col + row * s_row;
          return n == 16 ? load<float>(p) : load<float>(p, static_cast<int>(n));
        };
        if constexpr (kTiled<P>) v[j] = bits<Vec<float>>((bits<U32>(at(0)) >> 16) | bits<U32>(at(1)));
        else v[j] = at(0);
      }
      if (n == 16) return transpose16(v, 64, to, matrix * sizeof(P));
      alignas(64) char rows[16 * 64];
      transpose16(v, 64, rows, 64);
      for (int64_t k = 0; k < n; ++k) std::memcpy(static_cast<void*>(to + k * matrix), rows + k * 64, 64);
      return;
    }
#endif
    for (int64_t k = 0; k < n; ++k)
      for (int64_t j = 0; j < 16; ++j) to[k * matrix + j] = j < wide ? packed<P>(from[j * s_col + k]) : P{};
  }
};

}  // namespace LATTE_ISA
}  // namespace latte
