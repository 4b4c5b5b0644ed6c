// The instruction level to run: the highest that processor, system and build support, capped by LATTE_FAST_ISA.
#pragma once
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace latte {

enum Level { kPortable, kAvx2, kAvx512, kAvx512Bf16, kAmx, kLevels };
constexpr const char* kLevelNames[] = {"portable", "avx2", "avx512", "avx512bf16", "amx"};

inline Level cpu_level() {
#if defined(__x86_64__) && defined(__linux__)
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return kPortable;
  const bool osxsave = c >> 27 & 1, fma = c >> 12 & 1, f16c = c >> 29 & 1;
  if (!osxsave) return kPortable;
  unsigned lo, hi;
  __asm__("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
  auto enabled = [lo](unsigned bits) { return (lo & bits) == bits; };
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return kPortable;
  if (!(fma && f16c && (b >> 5 & 1) && enabled(0x6))) return kPortable;
  const bool avx512 = (b >> 16 & 1) && (b >> 17 & 1) && (b >> 30 & 1) && (b >> 31 & 1);
  if (!(avx512 && enabled(0xe6))) return kAvx2;
  const bool tiles = (d >> 22 & 1) && (d >> 24 & 1) && enabled(0x60000);
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a >> 5 & 1)) return kAvx512;
  if (!tiles) return kAvx512Bf16;
  // Linux hands out the tile state on request only: ARCH_REQ_XCOMP_PERM for XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0 ? kAmx : kAvx512Bf16;
#else
  return kPortable;
#endif
}

inline bool built(Level level) {
  switch (level) {
#ifdef LATTE_HAS_AVX2
    case kAvx2: return true;
#endif
#ifdef LATTE_HAS_AVX512
    case kAvx512: return true;
#endif
#ifdef LATTE_HAS_AVX512BF16
    case kAvx512Bf16: return true;
#endif
#ifdef LATTE_HAS_AMX
    case kAmx: return true;
#endif
    default: return level == kPortable;
  }
}

inline Level isa() {
  static const Level level = [] {
    int cap = cpu_level();
    if (const char* want = std::getenv("LATTE_FAST_ISA")) {
      int level = kPortable;
      while (level <= kAmx && std::strcmp(want, kLevelNames[level])) ++level;
      if (level > kAmx)
        throw std::invalid_argument("LATTE_FAST_ISA must be portable, avx2, avx512, avx512bf16 or amx, got " +
                                    std::string(want));
      if (level < cap) cap = level;
    }
    while (!built(static_cast<Level>(cap))) --cap;
    return static_cast<Level>(cap);
  }();
  return level;
}

}  // namespace latte
