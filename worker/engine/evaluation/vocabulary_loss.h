#pragma once

#include <ATen/ATen.h>

#include <cstdint>

#include "worker/engine/nn/transformer.h"

namespace quantry::engine {

// Sums over predicted tokens, added up window by window in fp64.
struct LossSums {
  double nll_dense = 0;
  double nll_quantized = 0;
  double kl = 0;
  int64_t same_argmax = 0;
  int64_t tokens = 0;
};

// Negative log-likelihood, KL and argmax of final hidden states against the
// next tokens, the vocabulary taken in chunks with running log-sum-exps, so
// that whole logits never exist.
class VocabularyLoss {
 public:
  // Heads of the dense and of the quantized chain; may be the same checkpoint.
  VocabularyLoss(const Checkpoint& dense, const Checkpoint& quantized, const at::Device& device)
      : head_(dense, device),
        same_head_(&dense == &quantized),
        quantized_head_(quantized, device) {}

  // dense, quantized: [windows, tokens, hidden] after the last block (quantized
  // may be undefined); ids: int64 [windows, tokens].
  void Add(const at::Tensor& dense, const at::Tensor& quantized, const at::Tensor& ids,
           LossSums* sums) const;

 private:
  OutputHead head_;
  bool same_head_;
  OutputHead quantized_head_;
};

}  // namespace quantry::engine
