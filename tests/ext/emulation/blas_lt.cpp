// A library with cuBLASLt's functions, for a machine without one: it multiplies on the CPU with the meaning that the
// library's manual gives to layouts, epilogues and split sums, refuses what the library would refuse, and writes a line a
// product. Its constants are the manual's, written down again.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace {

constexpr int kInvalid = 7, kUnsupported = 15;
constexpr uint64_t kMagic = 0xb1a5'0000'0000'0000;

struct Algo {
  uint64_t id, splits, reduction, unused[5];
};
struct Result {
  Algo algo;
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
};
struct Desc {
  int compute, scale, transa = 0, transb = 0;
  uint32_t epilogue = 1;
  uint64_t bias = 0, aux = 0;
  int64_t aux_ld = 0;
};
struct Layout {
  int type;
  uint64_t rows, cols;
  int64_t ld;
};
struct Preference {
  uint64_t workspace = 0;
  uint32_t reductions = 7, alignment[4] = {256, 256, 256, 256};
};

std::string lines, failing;
int alive = 0;

bool fails(const char* name) { return failing == name; }

typedef short Halves __attribute__((vector_size(16)));
typedef float Floats __attribute__((vector_size(16)));

float load(const void* at, int type, size_t i) {
  const uint16_t bits = static_cast<const uint16_t*>(at)[i];
  if (type == 2) return __builtin_ia32_vcvtph2ps(Halves{int16_t(bits)})[0];
  const uint32_t wide = uint32_t(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

void store(void* at, int type, size_t i, float value) {
  uint32_t wide;
  std::memcpy(&wide, &value, 4);
  const uint16_t bits =
      type == 2 ? uint16_t(__builtin_ia32_vcvtps2ph(Floats{value}, 0)[0]) : uint16_t((wide + 0x7fff + ((wide >> 16) & 1)) >> 16);
  static_cast<uint16_t*>(at)[i] = bits;
}

constexpr double kRoot = 0.7978845608028654, kCubic = 0.044715;  // sqrt(2 / pi)

double gelu(double x) { return 0.5 * x * (1 + std::tanh(kRoot * (x + kCubic * x * x * x))); }

double gelu_slope(double x) {
  const double t = std::tanh(kRoot * (x + kCubic * x * x * x));
  return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * kRoot * (1 + 3 * kCubic * x * x);
}

size_t workspace_of(const Algo& a, const Layout& d) {
  return (a.id & 0xff) == 9 ? 256 + (a.splits > 1 ? a.splits * d.rows * d.cols * 4 : 0) : 0;
}

bool known(const Algo& a) { return (a.id & ~uint64_t(0xff)) == kMagic; }

bool fits(const Desc& op, const Layout& a, const Layout& b, const Layout& d) {
  const uint64_t m = op.transa ? a.cols : a.rows, k = op.transa ? a.rows : a.cols;
  const uint64_t n = op.transb ? b.rows : b.cols, depth = op.transb ? b.cols : b.rows;
  const bool biased = op.epilogue & (4 | 16 | 512), aux = op.epilogue & 128;
  return m == d.rows && n == d.cols && k == depth && a.ld >= int64_t(a.rows) && b.ld >= int64_t(b.rows) &&
         d.ld >= int64_t(d.rows) && (biased || !op.bias) && (!aux || (op.aux_ld >= int64_t(m) && op.aux_ld % 8 == 0)) && op.compute == 68 &&
         op.scale == 0 && (aux || !op.aux);
}

}  // namespace

extern "C" {

const char* stub_lines() { return lines.c_str(); }
void stub_clear() { lines.clear(), failing.clear(); }
void stub_fail(const char* function) { failing = function; }
int stub_alive() { return alive; }

size_t cublasLtGetVersion() { return 130100; }

int cublasLtCreate(void** handle) {
  static int one;
  *handle = &one;
  return fails("cublasLtCreate") ? 1 : 0;
}

int cublasLtMatmulDescCreate(Desc** to, int compute, int scale) {
  *to = new Desc{compute, scale};
  return ++alive, 0;
}

int cublasLtMatmulDescDestroy(Desc* desc) {
  delete desc;
  return --alive, 0;
}

int cublasLtMatmulDescSetAttribute(Desc* desc, int attribute, const void* from, size_t size) {
  struct Field {
    int attribute;
    void* at;
    size_t size;
  } fields[] = {{3, &desc->transa, 4}, {4, &desc->transb, 4}, {7, &desc->epilogue, 4},
                {8, &desc->bias, 8},   {11, &desc->aux, 8},   {12, &desc->aux_ld, 8}};
  for (auto& field : fields)
    if (field.attribute == attribute && field.size == size) return std::memcpy(field.at, from, size), 0;
  return kInvalid;
}

int cublasLtMatrixLayoutCreate(Layout** to, int type, uint64_t rows, uint64_t cols, int64_t ld) {
  if (fails("cublasLtMatrixLayoutCreate")) return kInvalid;
  *to = new Layout{type, rows, cols, ld};
  return ++alive, 0;
}

int cublasLtMatrixLayoutDestroy(Layout* layout) {
  delete layout;
  return --alive, 0;
}

int cublasLtMatmulPreferenceCreate(Preference** to) {
  *to = new Preference;
  return ++alive, 0;
}

int cublasLtMatmulPreferenceDestroy(Preference* preference) {
  delete preference;
  return --alive, 0;
}

int cublasLtMatmulPreferenceSetAttribute(Preference* to, int attribute, const void* from, size_t size) {
  if (attribute == 1 && size == 8) return std::memcpy(&to->workspace, from, 8), 0;
  if (attribute == 3 && size == 4) return std::memcpy(&to->reductions, from, 4), 0;
  if (attribute >= 5 && attribute <= 8 && size == 4) return std::memcpy(&to->alignment[attribute - 5], from, 4), 0;
  return kInvalid;
}

// Three: one without a workspace, one that the library found and refuses, one with a workspace, whose sums can be split.
int cublasLtMatmulAlgoGetHeuristic(void*, Desc* op, Layout* a, Layout* b, Layout*, Layout* d, Preference* preference,
                                   int requested, Result* found, int* returned) {
  if (fails("cublasLtMatmulAlgoGetHeuristic") || !fits(*op, *a, *b, *d)) return kInvalid;
  lines += "search " + std::to_string(preference->workspace) + " reductions " + std::to_string(preference->reductions);
  for (uint32_t alignment : preference->alignment) lines += " " + std::to_string(alignment);
  lines += " bias " + std::to_string(op->bias) + " aux " + std::to_string(op->aux) + "\n";
  const uint64_t ids[] = {7, 8, 9};
  *returned = requested < 3 ? requested : 3;
  for (int i = 0; i < *returned; ++i) {
    found[i] = {{kMagic | ids[i], 1, 0, {}}, 0, ids[i] == 8 ? kUnsupported : 0, 1.0f, {}};
    found[i].workspace = workspace_of(found[i].algo, *d);
  }
  return 0;
}

int cublasLtMatmulAlgoCheck(void*, Desc* op, Layout* a, Layout* b, Layout*, Layout* d, const Algo* algo, Result* to) {
  if (!known(*algo) || !fits(*op, *a, *b, *d)) return kInvalid;
  *to = {*algo, workspace_of(*algo, *d), 0, 1.0f, {}};
  const bool split = algo->splits > 1;
  return split && ((algo->id & 0xff) != 9 || algo->reduction != 2 || algo->splits > 4) ? kUnsupported : 0;
}

int cublasLtMatmulAlgoConfigSetAttribute(Algo* algo, int attribute, const void* from, size_t size) {
  if (size != 4 || (attribute != 2 && attribute != 3)) return kInvalid;
  uint32_t value;
  std::memcpy(&value, from, 4);
  (attribute == 2 ? algo->splits : algo->reduction) = value;
  return 0;
}

int cublasLtMatmulAlgoConfigGetAttribute(const Algo* algo, int attribute, void* to, size_t size, size_t* written) {
  if (size != (attribute < 7 ? 4u : 2u)) return kInvalid;
  const uint32_t values[] = {uint32_t(algo->id & 0xff), 20, uint32_t(algo->splits), uint32_t(algo->reduction)};
  const uint32_t value = attribute < 4 ? values[attribute] : 0;
  std::memcpy(to, &value, *written = size);
  return 0;
}

int cublasLtMatmul(void*, Desc* op, const float* alpha, const void* A, Layout* a, const void* B, Layout* b,
                   const float* beta, const void* C, Layout*, void* D, Layout* d, const Algo* algo, void* workspace,
                   size_t size, void* stream) {
  const uint64_t m = d->rows, n = d->cols, k = op->transa ? a->rows : a->cols;
  void *bias = reinterpret_cast<void*>(op->bias), *aux = reinterpret_cast<void*>(op->aux);
  const bool biased = op->epilogue & (4 | 16 | 512), kept = op->epilogue & 128;
  for (const void* p : {A, B, const_cast<const void*>(D), const_cast<const void*>(biased ? bias : D),
                        const_cast<const void*>(kept ? aux : D)})
    if (reinterpret_cast<uint64_t>(p) < 64 || reinterpret_cast<uint64_t>(p) % 16) return kInvalid;
  if (fails("cublasLtMatmul") || !known(*algo) || !fits(*op, *a, *b, *d) || *alpha != 1 || *beta != 0 || C != D)
    return kInvalid;
  const size_t needed = workspace_of(*algo, *d);
  if (needed > size || (needed && !workspace)) return kInvalid;
  if (needed) std::memset(workspace, 0xff, needed);
  const int type = d->type;
  std::vector<double> sums(op->epilogue & 16 ? m : 0);
  for (uint64_t j = 0; j < n; ++j) {
    double column = 0;
    for (uint64_t l = 0; l < k; ++l) column += load(B, type, op->transb ? j + l * b->ld : l + j * b->ld);
    for (uint64_t i = 0; i < m; ++i) {
      double sum = 0;
      for (uint64_t l = 0; l < k; ++l)
        sum += double(load(A, type, op->transa ? l + i * a->ld : i + l * a->ld)) *
               load(B, type, op->transb ? j + l * b->ld : l + j * b->ld);
      if (op->epilogue & 4) sum += load(bias, type, i);
      if (op->epilogue == 164) store(aux, type, i + j * op->aux_ld, float(sum));
      if (op->epilogue & 32) sum = gelu(sum);
      if (op->epilogue & 64) sum *= gelu_slope(load(aux, type, i + j * op->aux_ld));
      if (op->epilogue & 16) sums[i] += sum;
      store(D, type, i + j * d->ld, float(sum));
    }
    if (op->epilogue == 512) store(bias, type, j, float(column));
  }
  for (size_t i = 0; i < sums.size(); ++i) store(bias, type, i, float(sums[i]));
  for (uint64_t value : {m, n, k, uint64_t(op->transa), uint64_t(op->transb), uint64_t(op->epilogue), uint64_t(type),
                         uint64_t(a->ld), uint64_t(b->ld), uint64_t(d->ld), uint64_t(algo->id & 0xff), algo->splits,
                         uint64_t(size), reinterpret_cast<uint64_t>(stream)})
    lines += std::to_string(value) + " ";
  lines += "\n";
  return 0;
}

}  // extern "C"
