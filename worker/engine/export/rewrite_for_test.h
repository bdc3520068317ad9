#pragma once

#include <ATen/ATen.h>

#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

namespace quantry::engine::test {

// Writes the only file of an output folder, FOLDER/STEM.safetensors, anew: with the
// tensors of `changed` in place of those it held, its metadata as it was.
void ReplaceTensors(const std::string& folder, const std::string& stem,
                    const std::map<std::string, at::Tensor>& changed);

// Writes the only file of a container anew, the description in its metadata changed.
void Redescribe(const std::string& folder,
                const std::function<void(nlohmann::json& description)>& change);

}  // namespace quantry::engine::test
