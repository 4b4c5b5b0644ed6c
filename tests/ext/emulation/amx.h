// AMX tiles in software, for a machine without them: included before the sources of the AMX level, whose intrinsics are
// macros.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace emulated {

struct Tile { alignas(64) unsigned char bytes[16][64]; };
inline thread_local Tile tiles[8];

inline void load(int t, const void* p, int64_t stride) {
  for (int i = 0; i < 16; ++i) std::memcpy(tiles[t].bytes[i], static_cast<const char*>(p) + i * stride, 64);
}
inline void store(int t, void* p, int64_t stride) {
  for (int i = 0; i < 16; ++i) std::memcpy(static_cast<char*>(p) + i * stride, tiles[t].bytes[i], 64);
}
inline float wide(const unsigned char* p) {
  uint16_t half;
  std::memcpy(&half, p, 2);
  const uint32_t bits = uint32_t(half) << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline void product(int c, int a, int b) {
  for (int m = 0; m < 16; ++m)
    for (int n = 0; n < 16; ++n) {
      float sum;
      std::memcpy(&sum, tiles[c].bytes[m] + 4 * n, 4);
      for (int k = 0; k < 16; ++k)
        for (int half = 0; half < 2; ++half)
          sum += wide(tiles[a].bytes[m] + 4 * k + 2 * half) * wide(tiles[b].bytes[k] + 4 * n + 2 * half);
      std::memcpy(tiles[c].bytes[m] + 4 * n, &sum, 4);
    }
}

}  // namespace emulated

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig(p) ((void)(p))
#define _tile_release() ((void)0)
#define _tile_zero(t) std::memset(emulated::tiles[t].bytes, 0, 1024)
#define _tile_loadd(t, p, stride) emulated::load(t, p, stride)
#define _tile_stored(t, p, stride) emulated::store(t, p, stride)
#define _tile_dpbf16ps(c, a, b) emulated::product(c, a, b)
