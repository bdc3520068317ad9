#pragma once

#include <ATen/ATen.h>

#include <map>
#include <string>
#include <vector>

#include "worker/engine/methods/method.h"

namespace quantry::engine {

// A learnable equivalent transformation of a block (LET, spec: baselines.md
// 2.2): scales between a norm and its linears, value and output projection,
// query and key; where asked for, shifts between the first two pairs, if what gives
// and what takes them have biases. The down projection is never transformed.
class EquivalentTransform {
 public:
  // Scales at their start, leaves of autograd: |x|max^alpha / |W|max^(1 - alpha)
  // of one linear a group; 1 between query and key. `input_max`: largest |x| per
  // channel of each source linear (InputSource). `shifts`: where shifts start, per channel of
  // these inputs; without one there are none.
  EquivalentTransform(const Block& block, const std::map<int, at::Tensor>& input_max, double alpha,
                      bool tie_rope_pairs, const std::map<int, at::Tensor>& shifts = {});

  // Trainable scales and shifts.
  const std::vector<at::Tensor>& parameters() const { return parameters_; }

  // Pushes |s| < 0.01 of scales to +-0.01; 0 stays. Before every step.
  void KeepAway();

  // The transformed block, differentiable in the parameters.
  Block Apply(const Block& block) const;

  // The same for good: norms and biases are rounded to their storage dtypes, and
  // the scale that a rounded norm really stands for is the one applied.
  Block Bake(const Block& block, const std::map<std::string, at::ScalarType>& dtypes) const;

 private:
  struct Group {
    SmoothingGroup group;
    at::Tensor scale;  // [in of the linears]; value to output: [kv_size]
    at::Tensor shift;  // likewise; undefined = none
  };

  at::Tensor QueryScale() const;  // [query_size], of each query channel
  at::Tensor KeyScale() const;    // [kv_size]
  void ScaleQueryAndKey(Block& block) const;
  void ScaleGroup(const Group& group, const at::Tensor& scale, Block& block) const;
  // Takes the shift from what goes into the group's linears, whose biases make up for it.
  void ShiftGroup(const Group& group, Block& block) const;

  const ModelConfig* config_;
  std::vector<Group> groups_;
  at::Tensor query_key_;  // [kv_size], or a half of each head where pairs are tied
  bool tied_ = false;
  std::vector<at::Tensor> parameters_;
};

}  // namespace quantry::engine
