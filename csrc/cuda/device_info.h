// What the statically linked CUDA runtime sees; reported by `latte-fast doctor`.
#pragma once
#include <tuple>

namespace latte {

std::tuple<int, int, int> cuda_runtime();

}  // namespace latte
