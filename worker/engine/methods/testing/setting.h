#pragma once

#include <ATen/ATen.h>

#include <atomic>
#include <memory>
#include <string>

#include "worker/engine/methods/method.h"
#include "worker/engine/model/checkpoint.h"
#include "worker/engine/nn/transformer.h"
#include "worker/engine/testing/counting_sink.h"
#include "worker/engine/testing/temp_dir.h"
#include "worker/engine/testing/tiny_model.h"

namespace quantry::engine::test {

// A random model of one architecture with a random calibration stream whose
// channels differ in size.
struct Setting {
  explicit Setting(const std::string& architecture,
                   const nlohmann::json& changes = nlohmann::json::object(), int windows = 40) {
    MakeTinyModel(architecture, changes).Write(dir.path());
    checkpoint = Checkpoint::Open(dir.path());
    block = LoadBlock(*checkpoint, 0);
    rope = MakeRopeTable(checkpoint->architecture(), checkpoint->config(), 16);
    at::manual_seed(7);
    x = at::randn({windows, 16, checkpoint->config().hidden_size}) *
        (at::rand({checkpoint->config().hidden_size}) * 3).exp();
  }

  StreamShape stream() const { return {x.size(0), x.size(1)}; }

  BlockTask Task(const GridSpec& grid, at::ScalarType dense = at::kFloat) const {
    BlockTask task{block, rope, x, x, grid, at::kHalf, {}, 0, at::kCPU};
    for (const Norm& norm : block.norms) task.dense_dtypes[norm.name + ".weight"] = dense;
    return task;
  }

  TempDir dir;
  std::shared_ptr<const Checkpoint> checkpoint;
  Block block;
  RopeTable rope;
  at::Tensor x;
};

inline double RelativeError(const at::Tensor& got, const at::Tensor& wanted) {
  return ((got - wanted).norm() / wanted.norm()).item<double>();
}

}  // namespace quantry::engine::test
