// A GPU of fibers for csrc/cuda/conv_*.cuh, under the names of conv_machine.cuh: one fiber a thread, blocks one
// after the other. Every access to global memory is checked against the tensors it may touch, every store is counted,
// asynchronous copies arrive as late (or as early) as they may, and shared memory starts as NaN.
#pragma once
#include <immintrin.h>
#include <setjmp.h>
#include <ucontext.h>

#include <climits>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#define LATTE_DEVICE inline
#define LATTE_KERNEL(threads, resident) void

namespace latte {
namespace conv {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};
template <class To, class From> To same_bits(From x) {
  To to;
  std::memcpy(&to, &x, sizeof(to));
  return to;
}
inline float as_float(uint32_t x) { return same_bits<float>(x); }
inline float widened(float x) { return x; }
inline float widened(bf16 x) { return as_float(uint32_t(x.bits) << 16); }
inline float widened(f16 x) { return _cvtsh_ss(x.bits); }
template <class T> T narrowed(float x);
template <> inline float narrowed<float>(float x) { return x; }
template <> inline bf16 narrowed<bf16>(float x) {
  const uint32_t bits = same_bits<uint32_t>(x);
  return {uint16_t(std::isnan(x) ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
template <> inline f16 narrowed<f16>(float x) { return {uint16_t(_cvtss_sh(x, 0))}; }
// to 10 bits of mantissa, ties away from zero
inline uint32_t tf32(float x) {
  const uint32_t bits = same_bits<uint32_t>(x);
  return std::isfinite(x) ? (bits + 0x1000) & 0xffffe000u : bits;
}

// ---- memory: the tensors that kernels may touch

struct Memory {
  struct Range {
    uintptr_t begin, end;
    std::vector<uint8_t> writes;
  };
  std::vector<Range> ranges;
  std::string error;
  bool lazy = true;      // asynchronous copies arrive when waited for, else at once
  bool backwards = false;  // the order in which threads run

  void fail(const std::string& why) {
    if (error.empty()) error = why;
  }
  Range* find(const void* p, size_t bytes) {
    const uintptr_t at = reinterpret_cast<uintptr_t>(p);
    if (at % bytes) fail("an access that is not aligned");
    for (Range& r : ranges)
      if (at >= r.begin && at + bytes <= r.end) return &r;
    fail("an access outside of every tensor");
    return nullptr;
  }
};
inline Memory memory;

template <class T> T read(const T* p) { return memory.find(p, sizeof(T)) ? *p : T{}; }
template <class T> void write(T* p, T value) {
  Memory::Range* r = memory.find(p, sizeof(T));
  if (!r) return;
  for (size_t i = 0; i < sizeof(T); ++i)
    if (r->writes[reinterpret_cast<uintptr_t>(p) - r->begin + i]++) memory.fail("a second store to one address");
  *p = value;
}

// ---- threads

struct Fiber {
  jmp_buf at;
  ucontext_t first;
  std::unique_ptr<char[]> stack{new char[kStack]};
  bool done = false;
  struct Copy {
    void* to;
    const void* from;
  };
  std::vector<std::vector<Copy>> copies{1};
  static constexpr size_t kStack = 1 << 16;
};

struct Gathering {  // threads that wait for each other
  int arrived = 0;
  uint64_t generation = 0;
};

struct Machine {
  std::vector<Fiber> fibers;
  std::vector<unsigned char> shared;
  Gathering all, warps[32];
  void* given[32][32];
  int current = 0, live = 0;
  int block = 0, blocks = 0;
  std::function<void()> body;
  jmp_buf home;
};
inline Machine machine;

inline int thread() { return machine.current; }
inline int block() { return machine.block; }
inline int blocks() { return machine.blocks; }
inline unsigned char* shared_memory() { return machine.shared.data(); }

// Warps are as far apart as barriers let them be: a thread gives way to its own warp's, and only where the block meets,
// or at its end, to the next one's
[[noreturn]] inline void next_fiber(int among) {
  Machine& m = machine;
  if (!m.live) _longjmp(m.home, 1);
  const int step = memory.backwards ? among - 1 : 1, first = m.current / among * among;
  for (int i = 1; i <= among; ++i) {
    const int next = first + (m.current - first + i * step) % among;
    if (m.fibers[next].done) continue;
    m.current = next;
    _longjmp(m.fibers[next].at, 1);
  }
  next_fiber(static_cast<int>(m.fibers.size()));
}
inline void yield(int among) {
  if (!_setjmp(machine.fibers[machine.current].at)) next_fiber(among);
}
// The last to arrive does the work, which lets the others go on
template <class Work> void meet(Gathering& m, int expected, Work work) {
  const uint64_t generation = m.generation;
  if (++m.arrived == expected) {
    work();
    m.arrived = 0;
    ++m.generation;
    return;
  }
  while (m.generation == generation) yield(expected);
}
inline void barrier() {
  if (machine.live != static_cast<int>(machine.fibers.size())) memory.fail("a barrier after a thread has left");
  meet(machine.all, machine.live, [] {});
}
// work(what the 32 lanes gave) once for the warp
template <class T, class Work> void warp_wide(T& mine, Work work) {
  const int warp = thread() / 32;
  machine.given[warp][thread() % 32] = &mine;
  meet(machine.warps[warp], 32, [&] { work(reinterpret_cast<T**>(machine.given[warp])); });
}

struct Shuffle {
  int64_t x, to;
  int lane;
};
inline int64_t shuffle(int64_t x, int lane) {
  Shuffle mine{x, 0, lane};
  warp_wide(mine, [](Shuffle** lanes) {
    for (int l = 0; l < 32; ++l) lanes[l]->to = lanes[lanes[l]->lane]->x;
  });
  return mine.to;
}

inline void fiber_main() {
  machine.body();
  machine.fibers[machine.current].done = true;
  --machine.live;
  next_fiber(32);
}

// Takes a fiber onto its own stack and back; from then on it is only jumped to, which costs no system call
inline void start(Fiber& f) {
  static ucontext_t here;
  static Fiber* starting;
  starting = &f;
  f.done = false;
  f.copies.assign(1, {});
  getcontext(&f.first);
  f.first.uc_stack.ss_sp = f.stack.get();
  f.first.uc_stack.ss_size = Fiber::kStack;
  makecontext(&f.first, +[] {
    if (!_setjmp(starting->at)) setcontext(&here);
    fiber_main();
  }, 0);
  swapcontext(&here, &f.first);
}

template <class... Args>
std::string launch(void (*kernel)(Args...), int64_t grid, int threads, int shared, int, void*, Args... args) {
  if (grid > INT_MAX) return "too many blocks: " + std::to_string(grid);
  Machine& m = machine;
  m.blocks = static_cast<int>(grid);
  m.body = [&] { kernel(args...); };
  m.fibers = std::vector<Fiber>(threads);
  for (m.block = 0; m.block < m.blocks && memory.error.empty(); ++m.block) {
    m.shared.assign(shared, 0xff);
    m.live = threads;
    m.all = {};
    for (Gathering& w : m.warps) w = {};
    for (Fiber& f : m.fibers) start(f);
    m.current = memory.backwards ? threads - 1 : 0;
    if (!_setjmp(m.home)) _longjmp(m.fibers[m.current].at, 1);
  }
  return memory.error;
}

// ---- asynchronous copies

inline void* in_shared(const void* p, size_t bytes) {
  const auto offset = static_cast<const unsigned char*>(p) - machine.shared.data();
  if (offset < 0 || offset + bytes > machine.shared.size()) memory.fail("an access outside of shared memory");
  if (offset % bytes) memory.fail("a shared access that is not aligned");
  return const_cast<void*>(p);
}
inline void arrive(const Fiber::Copy& c) {
  if (!memory.error.empty()) return;
  if (c.from) std::memcpy(c.to, c.from, 16);
  else std::memset(c.to, 0, 16);
}
inline void copy_async(void* to, const void* from, bool valid) {
  if (valid) memory.find(from, 16);
  const Fiber::Copy c{in_shared(to, 16), valid ? from : nullptr};
  if (memory.lazy) machine.fibers[thread()].copies.back().push_back(c);
  else arrive(c);
}
inline void copy_commit() { machine.fibers[thread()].copies.emplace_back(); }
template <int kPending> void copy_wait() {
  auto& groups = machine.fibers[thread()].copies;
  while (groups.size() > kPending + 1) {
    for (const Fiber::Copy& c : groups.front()) arrive(c);
    groups.erase(groups.begin());
  }
}

// ---- warp-wide instructions, by the fragment layouts of the PTX manual

struct MatrixLoad {
  uint32_t* to;
  const void* row;
};
inline void load_matrices(uint32_t (&to)[4], const void* row) {
  MatrixLoad mine{to, in_shared(row, 16)};
  warp_wide(mine, [](MatrixLoad** lanes) {
    for (int i = 0; i < 4; ++i)
      for (int l = 0; l < 32; ++l)
        std::memcpy(&lanes[l]->to[i], static_cast<const char*>(lanes[8 * i + l / 4]->row) + l % 4 * 4, 4);
  });
}
inline void load_matrices_transposed(uint32_t (&to)[4], const void* row) {
  MatrixLoad mine{to, in_shared(row, 16)};
  warp_wide(mine, [](MatrixLoad** lanes) {
    for (int i = 0; i < 4; ++i)
      for (int l = 0; l < 32; ++l)
        for (int half = 0; half < 2; ++half)
          std::memcpy(reinterpret_cast<char*>(&lanes[l]->to[i]) + 2 * half,
                      static_cast<const char*>(lanes[8 * i + l % 4 * 2 + half]->row) + l / 4 * 2, 2);
  });
}

struct Product {
  float* c;
  const uint32_t *a, *b;
};
template <class T> float operand(uint32_t word, int part) {
  if constexpr (sizeof(T) == 4) return as_float(word & 0xffffe000u);  // what the tensor core reads of it
  else return widened(T{uint16_t(word >> (16 * part))});
}
template <class T> void mma(T, float (&c)[4], const uint32_t (&a)[4], const uint32_t* b) {
  Product mine{c, a, b};
  warp_wide(mine, [](Product** lanes) {
    constexpr int kWords = 4 / sizeof(T), kDepth = 8 * kWords;
    float fa[16][kDepth], fb[kDepth][8];
    bool zero_a = true, zero_b = true;
    for (int l = 0; l < 32; ++l) {
      for (int r = 0; r < 4; ++r) zero_a = zero_a && !lanes[l]->a[r];
      for (int r = 0; r < 2; ++r) zero_b = zero_b && !lanes[l]->b[r];
    }
    if (zero_a && zero_b) return;
    for (int l = 0; l < 32; ++l)
      for (int part = 0; part < kWords; ++part) {
        for (int r = 0; r < 4; ++r)
          fa[l / 4 + r % 2 * 8][(l % 4 + r / 2 * 4) * kWords + part] = operand<T>(lanes[l]->a[r], part);
        for (int r = 0; r < 2; ++r) fb[(l % 4 + r * 4) * kWords + part][l / 4] = operand<T>(lanes[l]->b[r], part);
      }
    for (int l = 0; l < 32; ++l)
      for (int r = 0; r < 4; ++r) {
        double sum = lanes[l]->c[r];
        for (int k = 0; k < kDepth; ++k)
          sum += double(fa[l / 4 + r / 2 * 8][k]) * fb[k][l % 4 * 2 + r % 2];
        lanes[l]->c[r] = static_cast<float>(sum);
      }
  });
}

}  // namespace conv
}  // namespace latte
