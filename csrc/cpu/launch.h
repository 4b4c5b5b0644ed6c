// Python arguments to kernel arguments, the choice of the level, and the thread count of the CPU kernels.
#pragma once
#include <omp.h>
#include <pthread.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>

#include "isa.h"
#include "ops.h"

namespace latte {

using RowsArg = std::array<int64_t, 7>;
using GroupsArg = std::array<int64_t, 3>;
using HeadsArg = std::array<int64_t, 6>;

inline Rows rows_of(const RowsArg& t) { return {reinterpret_cast<void*>(t[0]), t[1], t[2], t[3], t[4], t[5], t[6]}; }
inline Groups groups_of(const GroupsArg& t) { return {reinterpret_cast<void*>(t[0]), t[1], t[2]}; }
inline Heads heads_of(const HeadsArg& t) { return {reinterpret_cast<void*>(t[0]), t[1], t[2], t[3], t[4], t[5]}; }

template <class Args> using Kernel = void (*)(const Args&);

#ifdef LATTE_HAS_AVX2
#define LATTE_AVX2(name) &avx2::name
#else
#define LATTE_AVX2(name) nullptr
#endif
#ifdef LATTE_HAS_AVX512
#define LATTE_AVX512(name) &avx512::name
#else
#define LATTE_AVX512(name) nullptr
#endif
#ifdef LATTE_HAS_AVX512BF16
#define LATTE_AVX512BF16(name) &avx512bf16::name
#else
#define LATTE_AVX512BF16(name) nullptr
#endif
#ifdef LATTE_HAS_AMX
#define LATTE_AMX(name) &amx::name
#else
#define LATTE_AMX(name) nullptr
#endif
#define LATTE_LEVELS(name) \
  {&portable::name, LATTE_AVX2(name), LATTE_AVX512(name), LATTE_AVX512BF16(name), LATTE_AMX(name)}

// libgomp's pool does not survive a fork, so a forked child runs on one thread
inline bool& forked() {
  static bool flag = (pthread_atfork(nullptr, nullptr, [] { forked() = true; }), false);
  return flag;
}

inline int64_t threads_of(int64_t asked, int64_t work) {
  constexpr int64_t kWorthAThread = 1 << 14;
  if (forked() || omp_in_parallel()) return 1;
  const int64_t worth = 1 + work / kWorthAThread;
  return asked < worth ? asked : worth;
}

template <class Args> void launch(const Kernel<Args> (&levels)[kLevels], Args& args, int64_t dtype, int64_t work) {
  args.threads = threads_of(args.threads, work);
  pybind11::gil_scoped_release release;
  levels[dtype == kF64 ? kPortable : isa()](args);
}

}  // namespace latte
