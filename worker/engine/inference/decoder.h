#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "worker/engine/model/checkpoint.h"
#include "worker/engine/nn/block.h"
#include "worker/engine/nn/transformer.h"

namespace quantry::engine {

// One sequence of tokens through a whole model, going on where it stopped:
// every block keeps keys and values of what it has seen. Not thread-safe.
class Decoder {
 public:
  // All blocks of the model in order, on `device`. `capacity`: tokens the
  // sequence may have in the end. Throws INVALID_SPEC when the model cannot take
  // as many.
  Decoder(std::shared_ptr<const Checkpoint> checkpoint, std::vector<Block> blocks, int64_t capacity,
          const at::Device& device = at::kCPU);

  // Adds tokens (at least one); fp32 logits [vocabulary] of what comes next, on
  // the device.
  at::Tensor Append(const std::vector<int32_t>& ids);

  int64_t length() const { return length_; }

 private:
  std::shared_ptr<const Checkpoint> checkpoint_;
  std::vector<Block> blocks_;
  at::Device device_;
  std::vector<KeyValueCache> caches_;
  RopeTable rope_;
  OutputHead head_;
  at::Tensor head_rows_;  // fp32 [vocabulary, hidden]
  int64_t capacity_;
  int64_t length_ = 0;
};

}  // namespace quantry::engine
