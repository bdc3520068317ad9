// Time of y = x W'^T from packed PTQ1.61 weights beside fp32 at::mv, and beside
// what the bytes alone would take at the memory bandwidth of this machine; with
// --tiles, of the product by tiles on a device.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "benchmarks/on_device.h"
#include "worker/engine/base/error.h"
#include "worker/engine/kernels/packed_linear.h"
#include "worker/engine/kernels/tiled_linear.h"

namespace quantry::engine {
namespace {

constexpr double kSalientRatio = 0.2;
// Weights come from memory, not from the cache, when enough copies take turns
// to fill it several times over.
constexpr int64_t kColdBytes = int64_t{192} << 20;

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Best and median of repeated calls.
struct Timing {
  double best = 0;
  double median = 0;
};

Timing Measure(const std::function<void(int64_t)>& call, double budget_seconds) {
  for (int64_t i = 0; i < 3; ++i) call(i);
  std::vector<double> times;
  for (const double end = Seconds() + budget_seconds; Seconds() < end || times.size() < 10;) {
    const double start = Seconds();
    call(static_cast<int64_t>(times.size()));
    times.push_back(Seconds() - start);
  }
  std::sort(times.begin(), times.end());
  return {times.front(), times[times.size() / 2]};
}

MixedBinaryWeight RandomWeight(int64_t rows, int64_t columns) {
  const auto salient = static_cast<int64_t>(kSalientRatio * static_cast<double>(columns)) + 1;
  MixedBinaryWeight weight;
  weight.columns = columns;
  weight.salient = std::get<0>(at::randperm(columns).narrow(0, 0, salient).sort()).to(at::kInt);
  weight.codes = at::randint(0, 16, {rows, salient}, at::kByte);
  weight.scales = at::rand({rows});
  weight.zeros = at::randint(0, 16, {rows}, at::kByte);
  weight.signs = at::randint(0, 2, {rows, columns - salient}, at::kByte);
  weight.row_gain = at::rand({rows});
  weight.row_offset = at::rand({rows});
  weight.column_gain = at::rand({columns - salient});
  return weight;
}

// Bytes a second that all threads together read from memory: the fastest of
// several passes which add up one large array of integers.
double ReadBandwidth(int threads) {
  static const std::vector<uint64_t> data((size_t{256} << 20) / sizeof(uint64_t), 1);
  const auto pass = [&](int64_t) {
    at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
      const size_t part = data.size() / threads;
      const uint64_t* from = data.data() + begin * part;
      uint64_t sums[16] = {};
      for (size_t i = 0; i + 16 <= (end - begin) * part; i += 16) {
        for (size_t j = 0; j < 16; ++j) sums[j] += from[i + j];
      }
      volatile uint64_t sink = 0;
      for (const uint64_t sum : sums) sink = sink + sum;
    });
  };
  return static_cast<double>(data.size() * sizeof(uint64_t)) / Measure(pass, 1).best;
}

std::string Milliseconds(const Timing& timing) {
  char text[48];
  std::snprintf(text, sizeof(text), "%.3f (%.3f)", timing.best * 1e3, timing.median * 1e3);
  return text;
}

void Compare(const BitKernel& kernel, int64_t rows, int64_t columns, int threads,
             double bandwidth) {
  const MixedBinaryWeight weight = RandomWeight(rows, columns);
  const PackedLinear packed(weight, {}, kernel);
  const int64_t copies = kColdBytes / packed.bytes() + 1;
  const std::vector<PackedLinear> cold(static_cast<size_t>(copies), packed);
  const at::Tensor x = at::randn({columns});
  const Timing from_memory = Measure([&](int64_t i) { cold[i % copies].Apply(x); }, 2);
  const Timing from_cache = Measure([&](int64_t) { packed.Apply(x); }, 1);
  const at::Tensor dense = weight.Dequantize();
  const Timing sgemv = Measure([&](int64_t) { at::mv(dense, x); }, 2);
  const double bound = static_cast<double>(packed.bytes()) / bandwidth;
  std::printf("| %lldx%lld | %d | %.2f | %s | %s | %s | %.3f | %.1f | %.0f %% |\n",
              static_cast<long long>(rows), static_cast<long long>(columns), threads,
              static_cast<double>(packed.bytes()) / 1e6, Milliseconds(sgemv).c_str(),
              Milliseconds(from_memory).c_str(), Milliseconds(from_cache).c_str(), bound * 1e3,
              sgemv.best / from_memory.best, 100 * bound / from_memory.best);
  std::fflush(stdout);
}

void CompareTiles(const at::Device& device, int64_t rows, int64_t columns) {
  const MixedBinaryWeight weight = RandomWeight(rows, columns);
  const TiledLinear tiled(weight, {}, device);
  const at::Tensor dense = weight.Dequantize().to(device);
  for (const int64_t tokens : {1, 256}) {
    const at::Tensor x = at::randn({tokens, columns}).to(device);
    const auto timed = [&](const std::function<void()>& call) {
      return Milliseconds(Measure([&](int64_t) { call(), SecondsWhenIdle(device); }, 2));
    };
    const std::string by_tiles = timed([&] { tiled.Apply(x); });
    const std::string by_dense = timed([&] { at::mm(x, dense.t()); });
    std::printf("| %lldx%lld | %lld | %.2f | %lld | %s | %s |\n", static_cast<long long>(rows),
                static_cast<long long>(columns), static_cast<long long>(tokens),
                static_cast<double>(tiled.bytes()) / 1e6, static_cast<long long>(tiled.tile_rows()),
                by_dense.c_str(), by_tiles.c_str());
    std::fflush(stdout);
  }
}

int MainTiles(const std::string& name) {
  try {
    ConfigureRuntime(0);
    const at::Device device = OpenDevice(name);
    std::printf(
        "tiles on %s, %d threads; best and, in brackets, median\n\n"
        "| shape | tokens | packed MB | rows a tile | at::mm ms | tiles ms |\n|---|---|---|---|---|"
        "---|\n",
        DescribeDevice(device).c_str(), at::get_num_threads());
    for (const int64_t columns : {4096, 11008}) CompareTiles(device, 4096, columns);
  } catch (const EngineError& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}

// The kernel that "--kernel NAME" asks for, without it the fastest; nullptr where
// this machine has none of that name.
const BitKernel* TakeKernel(int argc, char** argv) {
  if (argc == 1) return &BestBitKernel();
  if (argc != 3 || std::string(argv[1]) != "--kernel") return nullptr;
  for (const BitKernel* kernel : BitKernels()) {
    if (std::string(argv[2]) == kernel->name) return kernel;
  }
  return nullptr;
}

int Main(int argc, char** argv) {
  const std::string tiles_on = TakeOption(argc, argv, "--tiles", "");
  if (!tiles_on.empty()) return MainTiles(tiles_on);
  const BitKernel* kernel = TakeKernel(argc, argv);
  if (kernel == nullptr) {
    std::fprintf(stderr,
                 "usage: quantry_packed_matvec [--kernel NAME | --tiles cpu|cuda]; kernels of this "
                 "machine:");
    for (const BitKernel* known : BitKernels()) std::fprintf(stderr, " %s", known->name);
    std::fprintf(stderr, "\n");
    return 2;
  }
  std::printf(
      "kernel: %s; best and, in brackets, median; weights of the packed product and of "
      "at::mv come from memory\n\n",
      kernel->name);
  std::printf(
      "| shape | threads | packed MB | at::mv ms | packed ms | in cache ms | bound ms | "
      "times at::mv | of the bound |\n|---|---|---|---|---|---|---|---|---|\n");
  std::vector<std::string> bandwidths;
  for (const int threads : {1, 2}) {
    at::set_num_threads(threads);
    const double bandwidth = ReadBandwidth(threads);
    for (const int64_t columns : {4096, 11008}) Compare(*kernel, 4096, columns, threads, bandwidth);
    bandwidths.push_back(std::to_string(bandwidth / 1e9));
  }
  std::printf("\nread bandwidth, 1 and 2 threads: %s and %s GB/s\n", bandwidths[0].c_str(),
              bandwidths[1].c_str());
  return 0;
}

}  // namespace
}  // namespace quantry::engine

int main(int argc, char** argv) { return quantry::engine::Main(argc, argv); }
