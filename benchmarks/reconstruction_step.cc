// Time of one TesseraQ step (forward, backward, Adam on roundings and scales)
// on a random block, beside the rate of plain matrix products of the same
// machine, device and thread count: what the step's products alone would take.
// Usage() says how to call it.
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

std::string SizeNames() {
  std::string names;
  for (const Size& size : kSizes) names += (names.empty() ? "" : ", ") + std::string(size.name);
  return names;
}

std::string Usage() {
  return "usage: quantry_reconstruction_step [options] [threads] [steps]\n"
         "\n"
         "Best time of a TesseraQ step at 2 bits on a random block, and the share it\n"
         "reaches of the rate of at::mm with the same tokens and widths.\n"
         "threads: 0 or none = all cores. steps: 20 when not given.\n"
         "\n"
         "  --device NAME         cpu (default), cuda, ..\n"
         "  --compute-dtype NAME  of the step's products: float32 (default) or bfloat16,\n"
         "                        whose at::mm is then shown beside that of fp32 where\n"
         "                        the device multiplies it\n"
         "  --soft SHARE          of the weights that are still soft, above 0, up to 1;\n"
         "                        0.3 (default) is about the mean over the published\n"
         "                        schedule, which goes from 0.8 to 0.005\n"
         "  --size NAME           one of " +
         SizeNames() +
         "; else all of them\n"
         "  --alone               no at::mm beside it, for a profiler\n";
}

[[noreturn]] void Refuse(const std::string& message) {
  std::fprintf(stderr, "quantry_reconstruction_step: %s; --help says more\n", message.c_str());
  std::exit(2);
}

struct Request {
  std::string device;
  ComputeDtype compute = ComputeDtype::kFloat32;
  double soft = 0.3;
  std::string size;    // empty = all
  bool alone = false;  // without at::mm
  int threads = 0;
  int64_t steps = 20;
};

double SoftShare(const std::string& text) {
  char* end = nullptr;
  const double share = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0' || !(share > 0 && share <= 1)) {
    Refuse("--soft is a share above 0 and up to 1, got '" + text + "'");
  }
  return share;
}

// A whole number of at least `least`.
int64_t Count(const std::string& what, const std::string& text, int64_t least) {
  char* end = nullptr;
  const int64_t count = std::strtoll(text.c_str(), &end, 10);
  if (text.empty() || *end != '\0' || count < least || count > 1'000'000) {
    Refuse(what + ": wanted a number from " + std::to_string(least) + " to 1000000, got '" + text +
           "'");
  }
  return count;
}

Request Parse(int argc, char** argv) {
  if (TakeFlag(argc, argv, "--help")) {
    std::fputs(Usage().c_str(), stdout);
    std::exit(0);
  }
  Request request;
  request.alone = TakeFlag(argc, argv, "--alone");
  request.device = TakeDevice(argc, argv);
  request.compute = TakeComputeDtype(argc, argv);
  request.soft = SoftShare(TakeOption(argc, argv, "--soft", "0.3"));
  request.size = TakeOption(argc, argv, "--size", "");
  const bool known = request.size.empty() ||
                     std::any_of(kSizes.begin(), kSizes.end(),
                                 [&](const Size& size) { return size.name == request.size; });
  if (!known) Refuse("--size '" + request.size + "' is none of " + SizeNames());
  if (argc > 3) Refuse("wanted threads and steps at most, got '" + std::string(argv[3]) + "'");
  if (argc > 1) request.threads = static_cast<int>(Count("threads", argv[1], 0));
  if (argc > 2) request.steps = Count("steps", argv[2], 1);
  return request;
}

// GFLOP/s of [tokens, in] x [in, out] of this type, the best of several.
double ProductRate(const at::Device& device, at::ScalarType type, int64_t tokens, int64_t in,
                   int64_t out) {
  const auto random = [&](at::IntArrayRef sizes) { return at::randn(sizes).to(device, type); };
  const at::Tensor a = random({tokens, in}), b = random({in, out});
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

// at::mm's rate of the same shapes, and the step's share of it.
void PrintProducts(const at::Device& device, at::ScalarType type, const Size& size, double rate) {
  const double bound =
      ProductRate(device, type, size.batch * size.tokens, size.hidden, size.intermediate);
  std::printf("; at::mm %s %6.1f: %3.0f %%", type == at::kFloat ? "fp32" : "bf16", bound,
              100 * rate / bound);
}

void Run(const at::Device& device, const Request& request, const Size& size) {
  const Architecture& architecture = *FindArchitecture("llama");
  const ModelConfig config = ConfigOf(size);
  Block block = RandomBlock(architecture, config).To(device);
  block.compute = request.compute;
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
    linear.Harden(request.soft);
    current.weights.push_back(linear.weight());
  }
  double best = 1e30;
  for (int64_t step = 0; step < request.steps; ++step) {
    const double begin = SecondsWhenIdle(device);
    const auto result =
        objective.Gradients(DrawWindows(8, size.batch, static_cast<uint64_t>(step)), current);
    StepAll(trained.linears, result.weight_gradients, {});
    best = std::min(best, SecondsWhenIdle(device) - begin);
  }
  const double gflop = StepGflop(size, block);
  const bool rounded = request.compute == ComputeDtype::kBfloat16;
  std::printf(
      "%-13s %s, %d threads, %s, %4.1f %% soft: %7.2f ms a step, %6.2f GFLOP, %6.1f GFLOP/s",
      size.name, DescribeDevice(device).c_str(), at::get_num_threads(), rounded ? "bf16" : "fp32",
      100 * request.soft, best * 1e3, gflop, gflop / best);
  if (!request.alone) PrintProducts(device, at::kFloat, size, gflop / best);
  if (!request.alone && rounded && MultipliesBfloat16(device)) {
    PrintProducts(device, at::kBFloat16, size, gflop / best);
  }
  std::printf("\n");
}

int Main(int argc, char** argv) {
  KeepFreedMemory();
  const Request request = Parse(argc, argv);
  try {
    ConfigureRuntime(request.threads);
    const at::Device device = OpenDevice(request.device);
    for (const Size& size : kSizes) {
      if (request.size.empty() || request.size == size.name) Run(device, request, size);
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
