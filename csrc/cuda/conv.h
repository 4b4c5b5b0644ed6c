// The CUDA launchers of conv_transpose3d that bindings.h calls; each returns an error's text, empty without one.
#pragma once
#include <string>

#include "conv_index.h"

namespace latte {
namespace conv {

std::string pack(const Pack& a, int device, void* stream);
std::string correlate(const Correlation& a, int device, void* stream);
std::string direct(const Correlation& a, int device, void* stream);
std::string weight_gradient(const WeightGradient& a, void* dw, int device, void* stream);

}  // namespace conv
}  // namespace latte
