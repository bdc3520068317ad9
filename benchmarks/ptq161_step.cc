// Time of one training step of PTQ1.61 on block 0 of a checkpoint, beside the
// plain product the authors' machine was measured with (2048 x 576 x 1536), so
// that figures of different machines can be set against each other.
//   quantry_ptq161_step [--device cpu] [--compute-dtype float32|bfloat16] [--alone] MODEL_DIR
//   LENGTH WINDOWS THREADS
// --alone: no product beside it, for a profiler.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "benchmarks/on_device.h"
#include "worker/engine/base/error.h"
#include "worker/engine/base/memory.h"
#include "worker/engine/methods/ptq161/mask.h"
#include "worker/engine/methods/ptq161/mixed_linear.h"
#include "worker/engine/methods/ptq161/train.h"
#include "worker/engine/model/shared_inputs.h"
#include "worker/engine/nn/transformer.h"

namespace quantry::engine {
namespace {

class NoProgress : public ProgressSink {
 public:
  void Advance(int64_t, std::string_view) override {}
};

// fp32 GFLOP/s of at::mm at 2048 x 576 x 1536, best of several.
double ProductRate(const at::Device& device) {
  const at::Tensor a = at::randn({2048, 576}).to(device);
  const at::Tensor b = at::randn({576, 1536}).to(device);
  double best = 1e9;
  for (int i = 0; i < 30; ++i) {
    const double begin = SecondsWhenIdle(device);
    at::mm(a, b);
    best = std::min(best, SecondsWhenIdle(device) - begin);
  }
  return 2.0 * 2048 * 576 * 1536 / best / 1e9;
}

// Products of a step in the factored form: forward and input gradients.
double StepFlops(const Block& block, int64_t tokens) {
  double weights = 0;
  for (const Linear& linear : block.linears) weights += static_cast<double>(linear.weight.numel());
  return 4.0 * weights * static_cast<double>(tokens);
}

struct Request {
  std::string model;
  int64_t length, windows;
  ComputeDtype compute;
  bool alone;  // without at::mm
};

void PrintShare(const at::Device& device, double flops, double step) {
  const double rate = ProductRate(device);
  std::printf(", %.0f %% of mm's rate; mm 2048x576x1536: %.1f GFLOP/s",
              100 * flops / step / 1e9 / rate, rate);
}

void Measure(const at::Device& device, const Request& request) {
  const auto& [model, length, windows, compute, alone] = request;
  const auto checkpoint = Checkpoint::Open(model);
  const Block block = LoadBlock(*checkpoint, 0, device);
  const RopeTable rope =
      MakeRopeTable(checkpoint->architecture(), checkpoint->config(), length, device);
  at::manual_seed(1);
  const at::Tensor ids = at::randint(checkpoint->config().vocab_size, {windows, length}, at::kLong);
  const at::Tensor x = Embed(*checkpoint, ids);
  const BlockTask task{block, rope, x, x, GridSpec(), at::kHalf, {}, 0, device};
  Ptq161Options options;
  options.epochs = 1;
  options.compute = compute;
  NoProgress progress;
  const BlockSurvey survey = SurveyBlock(task, options.statistic, progress);
  std::vector<at::Tensor> salient;
  int64_t numbers = 0;
  for (size_t i = 0; i < block.linears.size(); ++i) {
    const int source = InputSource(*block.architecture, static_cast<int>(i));
    salient.push_back(SelectSalient(options, survey.statistics.at(source)));
    numbers += 2 * block.linears[i].weight.size(0) + block.linears[i].weight.size(1);
  }
  ParameterBuffer buffer(numbers, device);
  const auto linears = MakeMixedLinears(block, options, salient, buffer);
  double best = 1e9;
  for (int round = 0; round < 3; ++round) {  // the first one warms up
    const double begin = SecondsWhenIdle(device);
    TrainBlock(task, options, survey, linears, buffer, progress);
    best = std::min(best, SecondsWhenIdle(device) - begin);
  }
  const double step = best / static_cast<double>(windows);
  const double flops = StepFlops(block, length);
  std::printf("%s, 1 x %lld tokens, %s, %d threads: %.2f ms a step (%.2f GFLOP in products)",
              model.substr(model.rfind('/') + 1).c_str(), static_cast<long long>(length),
              DescribeDevice(device).c_str(), at::get_num_threads(), step * 1e3, flops / 1e9);
  if (!alone) PrintShare(device, flops, step);
  std::printf("; peak RSS %.0f MB\n", static_cast<double>(PeakRssBytes()) / 1e6);
}

int Main(int argc, char** argv) {
  KeepFreedMemory();
  const std::string device = TakeDevice(argc, argv);
  const ComputeDtype compute = TakeComputeDtype(argc, argv);
  const bool alone = TakeFlag(argc, argv, "--alone");
  if (argc != 5) {
    std::fprintf(
        stderr,
        "usage: quantry_ptq161_step [--device cpu|cuda] [--compute-dtype float32|bfloat16] "
        "[--alone] MODEL_DIR LENGTH WINDOWS THREADS\n");
    return 2;
  }
  try {
    ConfigureRuntime(std::atoi(argv[4]));
    Measure(OpenDevice(device),
            {argv[1], std::atoll(argv[2]), std::atoll(argv[3]), compute, alone});
  } catch (const EngineError& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace quantry::engine

int main(int argc, char** argv) { return quantry::engine::Main(argc, argv); }
