#include "worker/engine/inference/decoder.h"

#include "worker/engine/base/error.h"
#include "worker/engine/base/strings.h"

namespace quantry::engine {

Decoder::Decoder(std::shared_ptr<const Checkpoint> checkpoint, std::vector<Block> blocks,
                 int64_t capacity, const at::Device& device)
    : checkpoint_(std::move(checkpoint)),
      blocks_(std::move(blocks)),
      device_(device),
      head_(*checkpoint_, device),
      capacity_(capacity) {
  const ModelConfig& config = checkpoint_->config();
  CheckSequenceLength(checkpoint_->architecture(), config, capacity);
  rope_ = MakeRopeTable(checkpoint_->architecture(), config, capacity, device);
  for (size_t i = 0; i < blocks_.size(); ++i) {
    caches_.push_back(KeyValueCache::For(config, /*batch=*/1, capacity, device));
  }
  head_rows_ = head_.Rows(0, head_.vocab_size());
}

at::Tensor Decoder::Append(const std::vector<int32_t>& ids) {
  const auto tokens = static_cast<int64_t>(ids.size());
  if (tokens < 1 || tokens > capacity_ - length_) {
    throw EngineError(
        FailureClass::kBug, "INTERNAL",
        StrCat("a decoder with room for ", capacity_ - length_, " more tokens was given ", tokens));
  }
  const at::Tensor input = at::tensor(ids, at::kInt).to(at::kLong).view({1, tokens});
  at::Tensor hidden = Embed(*checkpoint_, input, device_, length_);
  for (size_t i = 0; i < blocks_.size(); ++i) {
    hidden = blocks_[i].Forward(hidden, rope_, {}, &caches_[i]);
  }
  length_ += tokens;
  return at::mv(head_rows_, head_.Normalize(hidden.select(1, tokens - 1)).squeeze(0));
}

}  // namespace quantry::engine
