// Time of one TesseraQ step (forward, backward, Adam on roundings and scales)
// on a random block, beside the rate of plain matrix products of the same
// machine, device and thread count: what the step's products alone would take.
//
//   quantry_reconstruction_step [--device cpu] [--compute-dtype float32|bfloat16]
//                               [--size stories260k|tiny1m|SmolLM2-135M] [threads] [steps]
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "benchmarks/on_device.h"
#include "worker/engine/base/error.h"
#include "worker/engine/base/memory.h"
#include "worker/engine/model/architecture.h"
#include "worker/engine/model/config.h"
#include "worker/engine/quant/grid.h"
#include "worker/engine/reconstruct/progressive_rounding.h"

namespace quantry::engine {
namespace {

struct Size {
  const char* name;
  int64_t hidden, intermediate, heads, kv_heads, head_dim;
  int64_t batch, tokens;
  GridSpec grid;
};

const std::vector<Size> kSizes = {
    {"stories260k", 64, 172, 8, 4, 8, 4, 256, {2, -1, false}},
    {"tiny1m", 128, 352, 2, 2, 64, 4, 256, {2, 32, false}},
    {"SmolLM2-135M", 576, 1536, 9, 3, 64, 4, 512, {2, 64, false}},
};

// GFLOP/s of [tokens, in] x [in, out], the best of several.
double ProductRate(const at::Device& device, int64_t tokens, int64_t in, int64_t out) {
  const at::Tensor a = at::randn({tokens, in}).to(device), b = at::randn({in, out}).to(device);
  constexpr int kAtOnce = 4;  // a GPU is not to wait for the clock each time
  double best = 0;
  for (int round = 0; round < 8; ++round) {
    const double begin = SecondsWhenIdle(device);
    double now = begin;
    int count = 0;
    while (now - begin < 0.1) {
      for (int i = 0; i < kAtOnce; ++i) at::mm(a, b);
      count += kAtOnce;
      now = SecondsWhenIdle(device);
    }
    const double flops = 2.0 * static_cast<double>(tokens * in * out) * count;
    best = std::max(best, flops / (now - begin) / 1e9);
  }
  return best;
}

ModelConfig ConfigOf(const Size& size) {
  ModelConfig config;
  config.hidden_size = size.hidden;
  config.intermediate_size = size.intermediate;
  config.num_heads = size.heads;
  config.num_kv_heads = size.kv_heads;
  config.head_dim = size.head_dim;
  return config;
}

Block RandomBlock(const Architecture& architecture, const ModelConfig& config) {
  Block block;
  block.architecture = &architecture;
  block.config = &config;
  for (const LinearSpec& spec : architecture.linears) {
    const LinearShape shape = ShapeOf(config, spec.role);
    Linear& linear = block.linears.emplace_back();
    linear.name = spec.name;
    linear.weight = at::randn({shape.out, shape.in}) * 0.05;
  }
  for (const NormSpec& spec : architecture.norms) {
    block.norms.push_back({spec.name, at::ones({SizeOf(config, spec.role)}), at::Tensor()});
  }
  return block;
}

// Products of a step: three for each linear, and for attention seven halves of
// tokens x tokens x dim (two forward, five backward, causal).
double StepGflop(const Size& size, const Block& block) {
  double weights = 0;
  for (const Linear& linear : block.linears) weights += static_cast<double>(linear.weight.numel());
  const auto tokens = static_cast<double>(size.batch * size.tokens);
  const double attention = 7.0 * static_cast<double>(size.batch * size.heads * size.tokens *
                                                     size.tokens * size.head_dim);
  return (6.0 * tokens * weights + attention) / 1e9;
}

void Run(const at::Device& device, ComputeDtype compute, const Size& size, int64_t steps) {
  const Architecture& architecture = *FindArchitecture("llama");
  const ModelConfig config = ConfigOf(size);
  Block block = RandomBlock(architecture, config).To(device);
  block.compute = compute;
  const RopeTable rope = MakeRopeTable(architecture, config, size.tokens, device);
  const at::Tensor x = at::randn({8, size.tokens, size.hidden});
  const BlockObjective objective(block, rope, x, at::randn_like(x), device);
  TrainedBlock trained;
  TrainableTensors current;
  for (const Linear& linear : block.linears) {
    trained.linears.emplace_back(linear.weight, MinMaxGrid(linear.weight, size.grid, at::kHalf),
                                 size.grid, ScaleCurve::kRectifiedSigmoid);
  }
  for (SoftRounding& linear : trained.linears) {
    linear.Harden(0.3);  // about the mean over the schedule
    current.weights.push_back(linear.weight());
  }
  double best = 1e30;
  for (int64_t step = 0; step < steps; ++step) {
    const double begin = SecondsWhenIdle(device);
    const auto result =
        objective.Gradients(DrawWindows(8, size.batch, static_cast<uint64_t>(step)), current);
    StepAll(trained.linears, result.weight_gradients, {});
    best = std::min(best, SecondsWhenIdle(device) - begin);
  }
  const double gflop = StepGflop(size, block);
  const double rate = ProductRate(device, size.batch * size.tokens, size.hidden, size.intermediate);
  std::printf(
      "%-13s %s, %d threads: %7.2f ms a step, %6.2f GFLOP, %6.1f GFLOP/s; at::mm %6.1f: %3.0f %%\n",
      size.name, DescribeDevice(device).c_str(), at::get_num_threads(), best * 1e3, gflop,
      gflop / best, rate, 100 * gflop / best / rate);
}

int Main(int argc, char** argv) {
  KeepFreedMemory();
  const std::string name = TakeDevice(argc, argv);
  const ComputeDtype compute = TakeComputeDtype(argc, argv);
  const std::string only = TakeOption(argc, argv, "--size", "");
  const int64_t steps = argc > 2 ? std::atoll(argv[2]) : 20;
  try {
    ConfigureRuntime(argc > 1 ? std::atoi(argv[1]) : 0);
    const at::Device device = OpenDevice(name);
    for (const Size& size : kSizes) {
      if (only.empty() || only == size.name) Run(device, compute, size, steps);
    }
  } catch (const EngineError& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace quantry::engine

int main(int argc, char** argv) { return quantry::engine::Main(argc, argv); }
