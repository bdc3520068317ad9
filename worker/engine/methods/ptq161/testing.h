#pragma once

#include <memory>
#include <string>

#include "worker/engine/methods/method.h"
#include "worker/engine/model/checkpoint.h"
#include "worker/engine/nn/transformer.h"
#include "worker/engine/testing/counting_sink.h"
#include "worker/engine/testing/temp_dir.h"
#include "worker/engine/testing/tiny_model.h"

namespace quantry::engine::test {

// Block 0 of a random model with a random calibration stream whose channels
// differ in size.
struct BlockSetting {
  explicit BlockSetting(const std::string& architecture, int64_t windows = 12,
                        int64_t length = 16) {
    test::MakeTinyModel(architecture).Write(dir.path());
    checkpoint = Checkpoint::Open(dir.path());
    block = LoadBlock(*checkpoint, 0);
    rope = MakeRopeTable(checkpoint->architecture(), checkpoint->config(), length);
    const int64_t hidden = checkpoint->config().hidden_size;
    at::manual_seed(7);
    x = at::randn({windows, length, hidden}) * (at::rand({hidden}) * 2).exp();
  }

  BlockTask Task() const { return {block, rope, x, x, GridSpec(), at::kHalf, {}, 0, at::kCPU}; }

  test::TempDir dir;
  std::shared_ptr<const Checkpoint> checkpoint;
  Block block;
  RopeTable rope;
  at::Tensor x;
};

}  // namespace quantry::engine::test
