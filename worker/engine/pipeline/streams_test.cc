#include "worker/engine/pipeline/streams.h"

#include <gtest/gtest.h>

#include "worker/engine/methods/block_weights.h"
#include "worker/engine/methods/ptq161/mask.h"
#include "worker/engine/methods/ptq161/ptq161.h"
#include "worker/engine/nn/transformer.h"
#include "worker/engine/pipeline/block_file.h"
#include "worker/engine/quant/grid.h"
#include "worker/engine/testing/counting_sink.h"
#include "worker/engine/testing/errors.h"
#include "worker/engine/testing/temp_dir.h"
#include "worker/engine/testing/tiny_model.h"

namespace quantry::engine {
namespace {

QuantizedBlock TwoBits(const Block& block) {
  QuantizedBlock quantized;
  quantized.index = block.index;
  for (const Linear& linear : block.linears) {
    quantized.linears.push_back(
        QuantizeNearest(linear.name, linear.weight, linear.bias, {2, -1, false}, at::kHalf));
  }
  quantized.dense = DenseTensors(block, {});
  return quantized;
}

class StreamsTest : public ::testing::TestWithParam<const char*> {};

// What one block hands to the next: the original model's hidden states, and
// those of the model that is stored, read back from its file.
TEST_P(StreamsTest, T24_NeitherChainSeesTheOther) {
  const test::TempDir dir;
  test::MakeTinyModel(GetParam()).Write(dir.path());
  const auto checkpoint = Checkpoint::Open(dir.path());
  const RopeTable rope = MakeRopeTable(checkpoint->architecture(), checkpoint->config(), 8);
  at::manual_seed(2);
  const at::Tensor windows = at::randint(0, checkpoint->config().vocab_size, {5, 8}, at::kLong);
  Streams streams = EmbedWindows(*checkpoint, windows, at::kCPU, [] {});
  at::Tensor original = Embed(*checkpoint, windows), stored = original;
  test::CountingSink quiet;
  for (int index = 0; index < checkpoint->config().num_layers; ++index) {
    const Block block = LoadBlock(*checkpoint, index);
    const QuantizedBlock quantized = TwoBits(block);
    const std::string path = dir.File("block-" + std::to_string(index));
    WriteBlockFile(path, quantized, {});
    const Block final = Rebuild(block, quantized);
    const BlockLosses losses =
        AdvanceStreams({block, final, final}, rope, at::kCPU, streams, quiet);
    original = block.Forward(original, rope);
    stored =
        Rebuild(LoadBlock(*checkpoint, index), ReadBlockFile(path).block).Forward(stored, rope);
    EXPECT_TRUE(at::allclose(streams.x_fp, original, 1e-5, 1e-6)) << index;
    EXPECT_TRUE(at::allclose(streams.x_q, stored, 1e-5, 1e-6)) << index;
    EXPECT_FALSE(at::allclose(streams.x_q, original, 1e-2, 1e-2)) << index;
    const double loss = (stored - original).square().sum(-1).mean().item<double>();
    EXPECT_NEAR(losses.final, loss, 1e-4 * loss);
  }
}

// PTQ1.61's invariant 9 (spec: ptq161.md 11.3), block after block under two
// settings: the original's hidden states, and all that is measured on them, are
// bit for bit those of no quantization at all.
TEST_P(StreamsTest, Invariant9_NoSettingReachesTheOriginalsChain) {
  const test::TempDir dir;
  test::MakeTinyModel(GetParam()).Write(dir.path());
  const auto checkpoint = Checkpoint::Open(dir.path());
  const RopeTable rope = MakeRopeTable(checkpoint->architecture(), checkpoint->config(), 8);
  at::manual_seed(3);
  const at::Tensor windows = at::randint(0, checkpoint->config().vocab_size, {5, 8}, at::kLong);
  test::CountingSink quiet;
  const auto advance = [&](const Block& block, const Block& final, Streams& streams) {
    AdvanceStreams({block, final, final}, rope, at::kCPU, streams, quiet);
  };
  const auto quantize = [&](const Block& block, const Ptq161Options& options, Streams& streams) {
    const BlockTask task{block, rope, streams.x_fp, streams.x_q, GridSpec(), at::kHalf,
                         {},    0,    at::kCPU};
    BlockSurvey survey = SurveyBlock(task, options.statistic, quiet);
    advance(block, Rebuild(block, Ptq161(options).Quantize(task, quiet).block), streams);
    return survey;
  };
  Ptq161Options trained, binary;
  trained.epochs = 2;
  binary.epochs = 0;
  binary.mask = false;
  const auto embed = [&] { return EmbedWindows(*checkpoint, windows, at::kCPU, [] {}); };
  Streams plain = embed(), first = embed(), second = embed();
  for (int index = 0; index < checkpoint->config().num_layers; ++index) {
    SCOPED_TRACE(index);
    const Block block = LoadBlock(*checkpoint, index);
    const BlockSurvey a = quantize(block, trained, first), b = quantize(block, binary, second);
    advance(block, block, plain);
    EXPECT_TRUE(at::equal(first.x_fp, plain.x_fp));
    EXPECT_TRUE(at::equal(second.x_fp, plain.x_fp));
    EXPECT_TRUE(at::equal(a.target_fp, b.target_fp));
    for (const auto& [source, statistic] : a.statistics) {
      EXPECT_TRUE(at::equal(statistic, b.statistics.at(source))) << source;
    }
    EXPECT_EQ(at::equal(a.target_q, a.target_fp), index == 0);
    EXPECT_EQ(at::equal(b.target_q, b.target_fp), index == 0);
    EXPECT_FALSE(at::equal(first.x_q, second.x_q));
    EXPECT_FALSE(at::equal(first.x_q, first.x_fp));
  }
}

// A loss that is not finite is told of the step that was taken: a method without
// rounding to nearest has none.
TEST_P(StreamsTest, AnOverflowIsThatOfTheBlockThatWasMeasured) {
  const test::TempDir dir;
  test::MakeTinyModel(GetParam()).Write(dir.path());
  const auto checkpoint = Checkpoint::Open(dir.path());
  const RopeTable rope = MakeRopeTable(checkpoint->architecture(), checkpoint->config(), 8);
  const Block block = LoadBlock(*checkpoint, 1);
  Block large = block.Clone();
  large.linears.back().weight.mul_(1e30);
  test::CountingSink quiet;
  const auto error = [&](const Block& rtn, const Block& final) {
    Streams streams = EmbedWindows(*checkpoint, at::arange(8).view({1, 8}), at::kCPU, [] {});
    return test::ErrorOf([&] {
      AdvanceStreams({block, rtn, final}, rope, at::kCPU, streams, quiet);
    });
  };
  for (const Block* rtn : std::initializer_list<const Block*>{&large, &block}) {
    EXPECT_EQ(error(*rtn, large).reason, "NON_FINITE_LOSS");
    EXPECT_TRUE(test::Mentions(error(*rtn, large), "block 1, quantized block"));
  }
  EXPECT_TRUE(test::Mentions(error(large, block), "block 1, rounding to nearest"));
}

INSTANTIATE_TEST_SUITE_P(Architectures, StreamsTest, ::testing::Values("llama", "opt"));

}  // namespace
}  // namespace quantry::engine
