#pragma once

#include <memory>
#include <string>
#include <vector>

#include "worker/engine/methods/catalog.h"
#include "worker/engine/methods/ptq161/options.h"

namespace quantry::engine {

// Ptq161Method of method.proto. Throws INVALID_SPEC naming the field.
Ptq161Options ParsePtq161(JsonObject& options);

std::unique_ptr<Method> CreatePtq161(JsonObject& options);
std::vector<ParameterRow> Ptq161Parameters();
std::vector<std::string> Ptq161Recipes();  // names

}  // namespace quantry::engine
