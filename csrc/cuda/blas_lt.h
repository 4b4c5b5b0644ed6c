// cuBLASLt from the copy of the library that torch loaded. Its functions and the few of its constants that are used are
// declared here, so that no header of its toolkit is needed, nor nvcc; each keeps its value from CUDA 11 on.
#pragma once
#include <dlfcn.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace latte::blas {

using Status = int;
using Object = void*;  // a handle, a description of a product or of a matrix, a preference

struct Algorithm {
  uint64_t data[8];
};

struct Candidate {
  Algorithm algorithm;
  size_t workspace;
  Status state;
  float waves;
  int reserved[4];
};
static_assert(sizeof(Candidate) == 96, "as cublasLtMatmulHeuristicResult_t");

enum : int { kFloat32 = 0, kComputeFloat32 = 68 };
enum : int { kTransA = 3, kTransB = 4, kEpilogue = 7, kBias = 8, kAux = 11, kAuxStride = 12 };  // of a product
enum : int { kMaxWorkspace = 1, kReductions = 3, kAlignmentA = 5 };                               // of a preference
enum : int { kSplits = 2, kReduction = 3, kConfigs = 9 };                                         // of an algorithm
// epilogues with a bias to add, or with a gradient of one; with a second matrix
constexpr uint32_t kHasBias = 4 | 16 | 512, kHasAux = 128;
// partial sums of a split product are added in fp32, in the workspace
constexpr uint32_t kReduceInFloat32 = 2;
// bytes; what every pointer is promised to be a multiple of
constexpr uint32_t kAlignment = 16;

struct Functions {
  size_t (*cublasLtGetVersion)();
  Status (*cublasLtCreate)(Object*);
  Status (*cublasLtMatmulDescCreate)(Object*, int, int);
  Status (*cublasLtMatmulDescDestroy)(Object);
  Status (*cublasLtMatmulDescSetAttribute)(Object, int, const void*, size_t);
  Status (*cublasLtMatrixLayoutCreate)(Object*, int, uint64_t, uint64_t, int64_t);
  Status (*cublasLtMatrixLayoutDestroy)(Object);
  Status (*cublasLtMatmulPreferenceCreate)(Object*);
  Status (*cublasLtMatmulPreferenceDestroy)(Object);
  Status (*cublasLtMatmulPreferenceSetAttribute)(Object, int, const void*, size_t);
  Status (*cublasLtMatmulAlgoGetHeuristic)(Object, Object, Object, Object, Object, Object, Object, int, Candidate*,
                                           int*);
  Status (*cublasLtMatmulAlgoCheck)(Object, Object, Object, Object, Object, Object, const Algorithm*, Candidate*);
  Status (*cublasLtMatmulAlgoConfigSetAttribute)(Algorithm*, int, const void*, size_t);
  Status (*cublasLtMatmulAlgoConfigGetAttribute)(const Algorithm*, int, void*, size_t, size_t*);
  Status (*cublasLtMatmul)(Object, Object, const void*, const void*, Object, const void*, Object, const void*,
                           const void*, Object, void*, Object, const Algorithm*, void*, size_t, void*);
};

inline void check(Status status, const char* function) {
  if (status) throw std::runtime_error(std::string(function) + ": status " + std::to_string(status));
}

// One handle of the library, on the device that is current when it is made. It lives as long as the process: at its end
// the driver may be gone before Python's objects are.
class Library {
 public:
  // `loaded`: only if the process has the library already
  Library(const std::string& path, bool loaded) {
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | (loaded ? RTLD_NOLOAD : 0));
    if (!library) {
      const char* why = dlerror();
      throw std::runtime_error(why ? why : path + " is not loaded");
    }
#define LATTE_FIND(name) find(library, #name, call.name)
    LATTE_FIND(cublasLtGetVersion);
    LATTE_FIND(cublasLtCreate);
    LATTE_FIND(cublasLtMatmulDescCreate);
    LATTE_FIND(cublasLtMatmulDescDestroy);
    LATTE_FIND(cublasLtMatmulDescSetAttribute);
    LATTE_FIND(cublasLtMatrixLayoutCreate);
    LATTE_FIND(cublasLtMatrixLayoutDestroy);
    LATTE_FIND(cublasLtMatmulPreferenceCreate);
    LATTE_FIND(cublasLtMatmulPreferenceDestroy);
    LATTE_FIND(cublasLtMatmulPreferenceSetAttribute);
    LATTE_FIND(cublasLtMatmulAlgoGetHeuristic);
    LATTE_FIND(cublasLtMatmulAlgoCheck);
    LATTE_FIND(cublasLtMatmulAlgoConfigSetAttribute);
    LATTE_FIND(cublasLtMatmulAlgoConfigGetAttribute);
    LATTE_FIND(cublasLtMatmul);
#undef LATTE_FIND
    check(call.cublasLtCreate(&handle), "cublasLtCreate");
  }

  size_t version() const { return call.cublasLtGetVersion(); }

  Functions call{};
  Object handle = nullptr;

 private:
  template <class F>
  static void find(void* library, const char* name, F& function) {
    function = reinterpret_cast<F>(dlsym(library, name));
    if (!function) throw std::runtime_error(std::string(name) + " was not found in cuBLASLt");
  }
};

// D (m, n) = op(A) op(B), each matrix column after column and without gaps, by one algorithm.
class Plan {
 public:
  Plan(std::shared_ptr<Library> from, std::array<uint64_t, 3> mnk, std::array<int, 2> transposed, int dtype,
       uint32_t epilogue)
      : library(std::move(from)) {
    auto& call = library->call;
    auto [m, n, k] = mnk;
    try {
      check(call.cublasLtMatmulDescCreate(&product, kComputeFloat32, kFloat32), "cublasLtMatmulDescCreate");
      set(kTransA, int32_t(transposed[0]));
      set(kTransB, int32_t(transposed[1]));
      set(kEpilogue, epilogue);
      // what a search takes for the alignment; the library refuses either with an epilogue that has no use for it
      if (epilogue & kHasBias) set(kBias, uint64_t(kAlignment));
      if (epilogue & kHasAux) set(kAux, uint64_t(kAlignment)), set(kAuxStride, int64_t(m));
      const uint64_t shapes[3][2] = {{transposed[0] ? k : m, transposed[0] ? m : k},
                                     {transposed[1] ? n : k, transposed[1] ? k : n},
                                     {m, n}};
      for (int i = 0; i < 3; ++i)
        check(call.cublasLtMatrixLayoutCreate(&layouts[i], dtype, shapes[i][0], shapes[i][1], int64_t(shapes[i][0])),
              "cublasLtMatrixLayoutCreate");
    } catch (...) {
      release();
      throw;
    }
  }
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;
  ~Plan() { release(); }

  // Algorithms that the library proposes, best guess first, and those with their sums split into `splits` parts.
  std::vector<pybind11::bytes> search(int count, uint64_t workspace, const std::vector<int32_t>& splits) {
    auto& call = library->call;
    std::vector<Candidate> found(count);
    int returned = 0;
    Object preference = nullptr;
    check(call.cublasLtMatmulPreferenceCreate(&preference), "cublasLtMatmulPreferenceCreate");
    Status status = call.cublasLtMatmulPreferenceSetAttribute(preference, kMaxWorkspace, &workspace, sizeof workspace);
    if (!status)
      status = call.cublasLtMatmulPreferenceSetAttribute(preference, kReductions, &kReduceInFloat32, sizeof(uint32_t));
    for (int i = 0; i < 4 && !status; ++i)
      status =
          call.cublasLtMatmulPreferenceSetAttribute(preference, kAlignmentA + i, &kAlignment, sizeof(uint32_t));
    if (!status)
      status = call.cublasLtMatmulAlgoGetHeuristic(library->handle, product, layouts[0], layouts[1], layouts[2],
                                                   layouts[2], preference, count, found.data(), &returned);
    call.cublasLtMatmulPreferenceDestroy(preference);
    check(status, "cublasLtMatmulAlgoGetHeuristic");
    std::vector<pybind11::bytes> algorithms;
    for (int i = 0; i < returned; ++i) {
      if (found[i].state) continue;
      algorithms.push_back(bytes(found[i].algorithm));
      for (int32_t parts : splits) {
        Algorithm split = found[i].algorithm;
        const bool taken =
            !call.cublasLtMatmulAlgoConfigSetAttribute(&split, kSplits, &parts, sizeof parts) &&
            !call.cublasLtMatmulAlgoConfigSetAttribute(&split, kReduction, &kReduceInFloat32, sizeof(uint32_t));
        Candidate checked{};
        if (taken && !try_out(split, checked) && checked.workspace <= workspace) algorithms.push_back(bytes(split));
      }
    }
    return algorithms;
  }

  // Makes an algorithm, as bytes, that of this plan; returns the workspace it needs.
  size_t take(const std::string& data) {
    Algorithm wanted{};
    if (data.size() != sizeof wanted) throw std::runtime_error("an algorithm has 64 bytes");
    std::memcpy(&wanted, data.data(), sizeof wanted);
    Candidate checked{};
    check(try_out(wanted, checked), "cublasLtMatmulAlgoCheck");
    algorithm = wanted, workspace = checked.workspace, ready = true;
    return workspace;
  }

  // bias, aux: null where the epilogue has none
  void run(uint64_t a, uint64_t b, uint64_t d, uint64_t bias, uint64_t aux, uint64_t space, uint64_t stream) {
    if (!ready) throw std::runtime_error("a plan needs an algorithm first");
    const float one = 1, zero = 0;
    if (bias) set(kBias, bias);
    if (aux) set(kAux, aux);
    void* to = reinterpret_cast<void*>(d);
    check(library->call.cublasLtMatmul(library->handle, product, &one, reinterpret_cast<void*>(a), layouts[0],
                                       reinterpret_cast<void*>(b), layouts[1], &zero, to, layouts[2], to, layouts[2],
                                       &algorithm, reinterpret_cast<void*>(space), workspace,
                                       reinterpret_cast<void*>(stream)),
          "cublasLtMatmul");
  }

  // Its algorithm's id, tile, splits, reduction, swizzling, custom option, stages, inner shape and cluster.
  std::array<uint32_t, kConfigs> config() const {
    std::array<uint32_t, kConfigs> values{};
    for (int i = 0; i < kConfigs; ++i) {
      // the last two have 16 bits
      const size_t size = i < 7 ? 4 : 2;
      size_t written = 0;
      library->call.cublasLtMatmulAlgoConfigGetAttribute(&algorithm, i, &values[i], size, &written);
    }
    return values;
  }

 private:
  template <class T>
  void set(int attribute, T value) {
    check(library->call.cublasLtMatmulDescSetAttribute(product, attribute, &value, sizeof value),
          "cublasLtMatmulDescSetAttribute");
  }

  Status try_out(const Algorithm& tried, Candidate& to) {
    Status status = library->call.cublasLtMatmulAlgoCheck(library->handle, product, layouts[0], layouts[1], layouts[2],
                                                          layouts[2], &tried, &to);
    return status ? status : to.state;
  }

  static pybind11::bytes bytes(const Algorithm& from) {
    return {reinterpret_cast<const char*>(&from), sizeof from};
  }

  void release() {
    for (Object layout : layouts)
      if (layout) library->call.cublasLtMatrixLayoutDestroy(layout);
    if (product) library->call.cublasLtMatmulDescDestroy(product);
  }

  std::shared_ptr<Library> library;
  Object product = nullptr;
  std::array<Object, 3> layouts{};
  Algorithm algorithm{};
  size_t workspace = 0;
  bool ready = false;
};

inline void bind(pybind11::module_& m) {
  namespace py = pybind11;
  py::class_<Library, std::shared_ptr<Library>>(m, "BlasLt", "a handle of cuBLASLt on the current device")
      .def(py::init<const std::string&, bool>(), py::arg("path"), py::arg("loaded"))
      .def_property_readonly("version", &Library::version);
  py::class_<Plan>(m, "BlasPlan", "one product by cuBLASLt, and the algorithm it runs by")
      .def(py::init<std::shared_ptr<Library>, std::array<uint64_t, 3>, std::array<int, 2>, int, uint32_t>(),
           py::arg("library"), py::arg("mnk"), py::arg("transposed"), py::arg("dtype"), py::arg("epilogue"))
      .def("search", &Plan::search, py::arg("count"), py::arg("workspace"), py::arg("splits"))
      .def("take", &Plan::take, py::arg("algorithm"))
      .def("run", &Plan::run)
      .def_property_readonly("config", &Plan::config);
}

}  // namespace latte::blas
