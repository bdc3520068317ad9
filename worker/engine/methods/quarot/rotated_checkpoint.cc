#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "worker/engine/base/file.h"
#include "worker/engine/methods/quarot/rotation.h"
#include "worker/engine/nn/transformer.h"

namespace quantry::engine {
namespace {

// Vocabulary rows rotated at once: fp64 copies stay small.
constexpr int64_t kRows = 4096;

// Rotated tensors of one model, made one block or row chunk at a time.
class Source {
 public:
  Source(const Checkpoint& checkpoint, const Rotation& rotation)
      : checkpoint_(checkpoint), rotation_(rotation) {}

  // Rows [vocabulary, hidden] times `gain` [hidden] where given, rotated, in
  // the dtype they are stored in.
  at::Tensor Rows(const std::string& name, const at::Tensor& gain) const {
    const at::Tensor stored = checkpoint_.View(name);
    at::Tensor rotated = at::empty(stored.sizes(), stored.options());
    for (int64_t first = 0; first < stored.size(0); first += kRows) {
      const int64_t count = std::min(kRows, stored.size(0) - first);
      at::Tensor rows = stored.narrow(0, first, count).to(at::kDouble);
      if (gain.defined()) rows = rows * gain;
      rotated.narrow(0, first, count).copy_(rotation_.Residual(rows));
    }
    checkpoint_.Release(name);
    return rotated;
  }

  // Tensor `key` ("mlp.up_proj.weight") of a block.
  at::Tensor OfBlock(int index, const std::string& key) {
    if (index != block_.index || block_.linears.empty()) {
      block_ = rotation_.Rotate(LoadBlock(checkpoint_, index));
    }
    const size_t dot = key.rfind('.');
    const std::string module = key.substr(0, dot);
    const bool bias = key.substr(dot) == ".bias";
    if (const int i = block_.LinearIndex(module); i >= 0) {
      return bias ? block_.linears[i].bias : block_.linears[i].weight;
    }
    return block_.FindNorm(module)->weight;
  }

  // Final norm weights, fp64, which the head takes over.
  at::Tensor FinalGain() const {
    return checkpoint_.LoadFloat(checkpoint_.FinalNormName() + ".weight").to(at::kDouble);
  }

 private:
  const Checkpoint& checkpoint_;
  const Rotation& rotation_;
  Block block_;
};

// Block and key of a tensor's name; -1 outside blocks.
std::pair<int, std::string> Locate(const Checkpoint& checkpoint, const std::string& name) {
  for (int i = 0; i < checkpoint.config().num_layers; ++i) {
    const std::string prefix = checkpoint.BlockPrefix(i);
    if (name.compare(0, prefix.size(), prefix) == 0) return {i, name.substr(prefix.size())};
  }
  return {-1, name};
}

bool IsLinearWeight(const Checkpoint& checkpoint, const std::string& key) {
  return std::any_of(checkpoint.architecture().linears.begin(),
                     checkpoint.architecture().linears.end(),
                     [&](const LinearSpec& spec) { return key == spec.name + ".weight"; });
}

// The embedding's name in the twin: a tied model may have stored it as its
// head, and the twin has both.
std::string EmbeddingOfTwin(const Checkpoint& checkpoint) {
  const Architecture& architecture = checkpoint.architecture();
  if (checkpoint.EmbeddingName() != architecture.head) return checkpoint.EmbeddingName();
  const std::string norm = checkpoint.FinalNormName();
  return norm.substr(0, norm.size() - architecture.final_norm.size()) + architecture.embedding;
}

std::vector<TensorSpec> Specs(const Checkpoint& checkpoint) {
  std::vector<TensorSpec> specs;
  for (const std::string& name : checkpoint.names()) {
    const TensorInfo& info = checkpoint.Info(name);
    const auto [block, key] = Locate(checkpoint, name);
    const bool linear = block >= 0 && IsLinearWeight(checkpoint, key);
    const bool embedding = name == checkpoint.EmbeddingName();
    specs.push_back({embedding ? EmbeddingOfTwin(checkpoint) : name,
                     linear ? at::kFloat : info.dtype, info.shape});
  }
  if (checkpoint.config().tie_word_embeddings) {
    const TensorInfo& embedding = checkpoint.Info(checkpoint.EmbeddingName());
    specs.push_back({checkpoint.architecture().head, embedding.dtype, embedding.shape});
  }
  return specs;
}

void WriteTensors(const Checkpoint& checkpoint, const Rotation& rotation, const std::string& dir,
                  uint64_t max_shard_bytes, const OnBytes& on_bytes) {
  const std::vector<TensorSpec> specs = Specs(checkpoint);
  Source source(checkpoint, rotation);
  ShardedWriter writer(dir, "model", specs, ShardedWriter::PlainMetadata, max_shard_bytes);
  for (const TensorSpec& spec : specs) {
    const auto [block, key] = Locate(checkpoint, spec.name);
    at::Tensor value;
    if (block >= 0) {
      value = source.OfBlock(block, key);
    } else if (spec.name == checkpoint.architecture().head) {
      value = source.Rows(checkpoint.HeadName(), source.FinalGain());
    } else if (spec.name == EmbeddingOfTwin(checkpoint)) {
      value = source.Rows(checkpoint.EmbeddingName(), {});
    } else {
      value = at::ones(spec.shape);  // the final norm
    }
    writer.Append(spec.name, value.to(spec.dtype));
    if (on_bytes) on_bytes(value.numel() * at::elementSize(spec.dtype));
  }
  writer.Finish();
}

}  // namespace

void WriteRotatedCheckpoint(const Checkpoint& source, const RotationSpec& spec, uint64_t seed,
                            const std::string& dir, uint64_t max_shard_bytes,
                            const OnBytes& on_bytes) {
  const Rotation rotation(source.architecture(), source.config(), spec.online, seed);
  WriteTensors(source, rotation, dir, max_shard_bytes, on_bytes);
  auto config = nlohmann::ordered_json::parse(source.config().json);
  config["tie_word_embeddings"] = false;
  config["quantry_rotation"] = {
      {"online", spec.online}, {"seed", seed}, {"hadamard", rotation.Matrices()}};
  WriteFileAtomically(dir + "/config.json", config.dump(2) + "\n");
}

int64_t RotatingBytes(const Checkpoint& source) {
  constexpr uint64_t kCopies = 2, kRowCopies = 4, kDoubleBytes = 8;
  const uint64_t stored =
      std::max(source.Info(source.EmbeddingName()).bytes(), source.Info(source.HeadName()).bytes());
  const uint64_t rows = kRows * source.config().hidden_size * kDoubleBytes;
  return static_cast<int64_t>(kCopies * stored + kRowCopies * rows);
}

}  // namespace quantry::engine
