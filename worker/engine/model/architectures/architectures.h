#pragma once

#include "worker/engine/model/architecture.h"

// One function a row; catalog.cc is the table. Adding an architecture is one
// file here and one line there.
namespace quantry::engine::architectures {

const Architecture& Llama();
const Architecture& Mistral();
const Architecture& Qwen2();
const Architecture& Qwen3();
const Architecture& Opt();

// What Llama and its descendants share: names, order, gated MLP, RMS norms and
// AWQ's four groups. Rows change what differs.
Architecture LlamaLike(const std::string& name);

}  // namespace quantry::engine::architectures
