// Methods whose batches and shares are in work at the same time.
#include <gtest/gtest.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "worker/engine/base/json_object.h"
#include "worker/engine/methods/batches.h"
#include "worker/engine/methods/catalog.h"
#include "worker/engine/methods/testing/setting.h"
#include "worker/engine/testing/threads.h"

namespace quantry::engine {
namespace {

constexpr int kThreads = 3;
constexpr int kWindows = 192;  // three batches
constexpr char kGridText[] = R"("grid": {"bits": 4, "group_size": -1})";

struct SideBySide {
  const char* method;
  const char* options;
};

class SideBySideTest : public ::testing::TestWithParam<SideBySide> {};

// What is summed, and in which order, is not for the clock to decide.
TEST_P(SideBySideTest, GivesTheSameBytesAgain) {
  const test::Threads threads(kThreads);
  const test::Setting setting("llama", nlohmann::json::object(), kWindows);
  const ModelConfig& config = setting.checkpoint->config();
  ASSERT_EQ(BatchWorkers(config, setting.stream(), at::kCPU), kThreads);
  const MethodRow* row = FindMethod(GetParam().method);
  const bool has_grid = row->weights == WeightKind::kGrid;
  const nlohmann::json json = nlohmann::json::parse(std::string("{") + (has_grid ? kGridText : "") +
                                                    GetParam().options + "}");
  JsonObject options(json, row->name);
  const GridSpec grid = has_grid ? GridSpec{4, -1, false} : kReferenceGrid;
  const std::unique_ptr<Method> method = row->create(options);
  const auto quantize = [&] {
    test::CountingSink counter;
    const MethodResult result = method->Quantize(setting.Task(grid), counter);
    EXPECT_EQ(counter.steps(),
              method->Steps(setting.checkpoint->architecture(), config, setting.stream()));
    return result;
  };
  const MethodResult first = quantize();
  for (int again = 0; again < 2; ++again) {
    const MethodResult other = quantize();
    for (size_t i = 0; i < first.block.linears.size(); ++i) {
      EXPECT_TRUE(
          at::equal(other.block.linears[i].Dequantize(), first.block.linears[i].Dequantize()))
          << first.block.linears[i].name;
    }
    EXPECT_EQ(other.metrics, first.metrics);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Methods, SideBySideTest,
    ::testing::Values(
        SideBySide{"awq", R"(, "scale_grid_points": 3)"}, SideBySide{"gptq", ""},
        SideBySide{"omniquant", R"(, "epochs": 1, "batch_size": 8)"},
        SideBySide{"signround", R"(, "iterations": 2)"},
        SideBySide{"tesseraq", R"(, "stages": 2, "steps_per_stage": 3, "batch_size": 3)"},
        SideBySide{"ptq161", R"("epochs": 1, "learn_rounding": true, "rounding_stages": 2,
                               "rounding_steps": 2, "rounding_batch": 3)"}),
    [](const auto& of) { return std::string(of.param.method); });

}  // namespace
}  // namespace quantry::engine
