#include "worker/engine/methods/batches.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <string>

#include "worker/engine/base/error.h"
#include "worker/engine/base/parallel.h"
#include "worker/engine/base/strings.h"

namespace quantry::engine {
namespace {

constexpr int64_t kBatchTokens = 1024;
// Activations of all workers together.
constexpr int64_t kActivationBytes = int64_t{96} << 20;
// Widest activations alive at once in a block's forward pass.
constexpr int64_t kAliveActivations = 5;

}  // namespace

int64_t WindowsPerBatch(int64_t length) { return std::max<int64_t>(1, kBatchTokens / length); }

int64_t Batches(const StreamShape& stream) {
  if (stream.windows == 0) return 0;
  const int64_t step = WindowsPerBatch(stream.length);
  return (stream.windows + step - 1) / step;
}

void CheckBatchSize(int64_t batch_size, const StreamShape& stream, const std::string& name) {
  if (batch_size <= stream.windows) return;
  const std::string batch = std::to_string(batch_size);
  throw UserError("INVALID_SPEC",
                  StrCat(name, " ", batch, " is larger than the ", stream.windows,
                         " calibration windows: ask for more samples or a smaller batch"),
                  {{name, batch}, {"windows", std::to_string(stream.windows)}});
}

int BatchWorkers(const ModelConfig& config, const StreamShape& stream, const at::Device& device) {
  if (!device.is_cpu() || stream.windows == 0) return 1;
  // Attention scores are held in small pieces (nn/block.cc) and do not count.
  const int64_t widest = WindowsPerBatch(stream.length) * stream.length *
                         std::max(config.intermediate_size, config.hidden_size);
  const int64_t fitting =
      kActivationBytes / (kAliveActivations * widest * static_cast<int64_t>(sizeof(float)));
  const int64_t useful = std::min<int64_t>(at::get_num_threads(), Batches(stream));
  return static_cast<int>(fitting < useful ? 1 : std::max<int64_t>(useful, 1));
}

void ForEachBatch(const StreamShape& stream, int workers,
                  const std::function<void(int worker, const Batch& batch)>& work) {
  const int64_t batches = Batches(stream);
  const int64_t step = WindowsPerBatch(stream.length);
  const auto run = [&](int64_t worker) {
    for (int64_t i = worker; i < batches; i += workers) {
      work(static_cast<int>(worker), {i, i * step, std::min((i + 1) * step, stream.windows)});
    }
  };
  if (workers == 1) return run(0);
  ForEachInParallel(workers, run);
}

}  // namespace quantry::engine
