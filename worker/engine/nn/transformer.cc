#include "worker/engine/nn/transformer.h"

#include <algorithm>

#include "worker/engine/base/error.h"
#include "worker/engine/base/non_finite.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/nn/online_rotation.h"

namespace quantry::engine {
namespace {

Norm LoadNorm(const Checkpoint& checkpoint, const std::string& prefix, const std::string& name,
              const at::Device& device) {
  Norm norm;
  norm.name = name;
  norm.weight = checkpoint.LoadFloat(prefix + name + ".weight").to(device);
  if (checkpoint.architecture().norm_kind == NormKind::kLayer) {
    norm.bias = checkpoint.LoadFloat(prefix + name + ".bias").to(device);
  }
  return norm;
}

// For weights read by rows; whole tensors are checked where they are loaded.
void CheckFinite(const at::Tensor& rows, const std::string& name) {
  if (AllFinite(rows)) return;
  throw UserError("NON_FINITE_WEIGHTS",
                  StrCat("tensor '", name,
                         "' has values which are NaN or infinite: the checkpoint "
                         "is damaged or was saved from a diverged run"),
                  {{"tensor", name}});
}

}  // namespace

Block LoadBlock(const Checkpoint& checkpoint, int index, const at::Device& device) {
  const Architecture& row = checkpoint.architecture();
  const std::string prefix = checkpoint.BlockPrefix(index);
  Block block;
  block.architecture = &row;
  block.config = &checkpoint.config();
  block.index = index;
  if (OnlineRotation::IsWanted(checkpoint.config())) {
    block.online = std::make_shared<const OnlineRotation>(OnlineRotation::For(checkpoint.config()));
  }
  for (const LinearSpec& spec : row.linears) {
    Linear linear;
    linear.name = spec.name;
    if (!checkpoint.IsPacked(prefix + spec.name + ".weight")) {
      linear.weight = checkpoint.LoadFloat(prefix + spec.name + ".weight").to(device);
    }
    if (HasBias(checkpoint.config(), spec)) {
      linear.bias = checkpoint.LoadFloat(prefix + spec.name + ".bias").to(device);
    }
    block.linears.push_back(std::move(linear));
  }
  for (const NormSpec& spec : row.norms) {
    block.norms.push_back(LoadNorm(checkpoint, prefix, spec.name, device));
  }
  return block;
}

at::Tensor Embed(const Checkpoint& checkpoint, const at::Tensor& ids, const at::Device& device,
                 int64_t first_position) {
  const Architecture& row = checkpoint.architecture();
  const ModelConfig& config = checkpoint.config();
  const at::Tensor flat = ids.to(at::kCPU).reshape({-1});
  const at::Tensor hidden = at::empty({flat.size(0), config.hidden_size}, at::kFloat);
  const at::Tensor table = checkpoint.View(checkpoint.EmbeddingName());
  // Row by row a text touches most pages of the table; they are dropped on the
  // way so that it is never resident as a whole.
  constexpr int64_t kRows = 1024;
  for (int64_t first = 0; first < flat.size(0); first += kRows) {
    const int64_t n = std::min(kRows, flat.size(0) - first);
    hidden.narrow(0, first, n).copy_(table.index_select(0, flat.narrow(0, first, n)));
    checkpoint.Release(checkpoint.EmbeddingName());
  }
  CheckFinite(hidden, checkpoint.EmbeddingName());
  at::Tensor result = hidden.view({ids.size(0), ids.size(1), config.hidden_size});
  if (row.positions == PositionKind::kLearned) {
    CheckSequenceLength(row, config, first_position + ids.size(1));
    const std::string name = checkpoint.PositionEmbeddingName();
    result += checkpoint.View(name)
                  .narrow(0, row.position_offset + first_position, ids.size(1))
                  .to(at::kFloat);
    checkpoint.Release(name);
    CheckFinite(result, name);
  }
  return result.to(device);
}

OutputHead::OutputHead(const Checkpoint& checkpoint, const at::Device& device)
    : checkpoint_(&checkpoint),
      device_(device),
      norm_(LoadNorm(checkpoint, "", checkpoint.FinalNormName(), device)) {}

int64_t OutputHead::vocab_size() const { return checkpoint_->config().vocab_size; }

at::Tensor OutputHead::Normalize(const at::Tensor& hidden) const {
  return ApplyNorm(norm_, checkpoint_->architecture().norm_kind, checkpoint_->config().norm_eps,
                   hidden);
}

at::Tensor OutputHead::Rows(int64_t first, int64_t count) const {
  const std::string name = checkpoint_->HeadName();
  at::Tensor rows =
      checkpoint_->View(name)
          .narrow(0, first, count)
          .to(at::TensorOptions().dtype(at::kFloat), /*non_blocking=*/false, /*copy=*/true);
  checkpoint_->Release(name);
  CheckFinite(rows, name);
  return rows.to(device_);
}

at::Tensor OutputHead::Logits(const at::Tensor& normed, int64_t first, int64_t count) const {
  return at::linear(normed, Rows(first, count));
}

}  // namespace quantry::engine
