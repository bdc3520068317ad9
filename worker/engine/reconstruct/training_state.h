#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

namespace quantry::engine {

// Where training of a whole model by Adam stands; the same numbers go on from it.
struct TrainingState {
  int64_t steps_done = 0;
  int retries = 0;                  // times it began again, at lower rates (retries.h)
  std::vector<at::Tensor> tensors;  // what is trained, fp32
  std::vector<at::Tensor> moments;  // Adam::Moments, two of each tensor
  double loss_first = 0;            // so far, means of the first and of the last tenth of the steps
  double loss_last = 0;

  // Takes over what was kept but for the moments, in place; false, and nothing
  // of it, when there is none or it is of other tensors.
  bool Resume(const std::optional<TrainingState>& kept) {
    if (!kept || kept->tensors.size() != tensors.size()) return false;
    for (size_t i = 0; i < tensors.size(); ++i) tensors[i].copy_(kept->tensors[i]);
    steps_done = kept->steps_done;
    retries = kept->retries;
    loss_first = kept->loss_first;
    loss_last = kept->loss_last;
    return true;
  }

  // One more of `steps` steps is done; `loss` was that before it.
  void Count(double loss, int64_t steps) {
    const int64_t tenth = std::max<int64_t>(1, steps / 10);
    const double share = loss / static_cast<double>(tenth);
    if (steps_done < tenth) loss_first += share;
    if (steps_done >= steps - tenth) loss_last += share;
    ++steps_done;
  }
};

class TrainingStore {
 public:
  virtual ~TrainingStore() = default;
  virtual std::optional<TrainingState> Load() = 0;
  // After every step; keeping the last one, once `finished`, is a must.
  virtual void Save(const TrainingState& state, bool finished) = 0;
};

}  // namespace quantry::engine
