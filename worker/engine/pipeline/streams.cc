#include "worker/engine/pipeline/streams.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "worker/engine/base/error.h"
#include "worker/engine/base/non_finite.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/methods/batches.h"
#include "worker/engine/model/safetensors.h"
#include "worker/engine/nn/transformer.h"

namespace quantry::engine {
namespace {

void CheckLoss(const char* step, int block, double loss) {
  if (std::isfinite(loss)) return;
  throw NonFiniteLoss(block, step,
                      StrCat("the loss is ", loss,
                             "; activations overflow in this block: check the checkpoint's weights "
                             "and the calibration text"));
}

double SquaredError(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).square_().sum(at::kDouble).item<double>();
}

}  // namespace

StreamShape ShapeOfStream(const at::Tensor& windows) {
  if (!windows.defined()) return {};
  return {windows.size(0), windows.size(1)};
}

Streams EmbedWindows(const Checkpoint& checkpoint, const at::Tensor& windows,
                     const at::Device& device, const std::function<void()>& done) {
  Streams streams;
  streams.x_fp = at::empty({windows.size(0), windows.size(1), checkpoint.config().hidden_size});
  const int64_t step = WindowsPerBatch(windows.size(1));
  for (int64_t first = 0; first < windows.size(0); first += step) {
    const int64_t last = std::min(first + step, windows.size(0));
    streams.x_fp.slice(0, first, last)
        .copy_(Embed(checkpoint, windows.slice(0, first, last), device));
    done();
  }
  streams.x_q = streams.x_fp.clone();
  return streams;
}

BlockLosses AdvanceStreams(const BlockVariants& blocks, const RopeTable& rope,
                           const at::Device& device, Streams& streams, ProgressSink& progress) {
  const auto begin = std::chrono::steady_clock::now();
  const bool same = &blocks.rtn == &blocks.final;
  const StreamShape stream{streams.x_fp.size(0), streams.x_fp.size(1)};
  const int workers = BatchWorkers(*blocks.original.config, stream, device);
  std::vector<BlockLosses> parts(Batches(stream));
  ForEachBatch(stream, workers, [&](int, const Batch& batch) {
    at::Tensor fp = streams.x_fp.slice(0, batch.first, batch.last);
    at::Tensor q = streams.x_q.slice(0, batch.first, batch.last);
    const at::Tensor wanted = blocks.original.Forward(fp.to(device), rope);
    const at::Tensor input = q.to(device);
    const at::Tensor got = blocks.final.Forward(input, rope);
    parts[batch.index].final = SquaredError(got, wanted);
    parts[batch.index].rtn = SquaredError(same ? got : blocks.rtn.Forward(input, rope), wanted);
    fp.copy_(wanted);
    q.copy_(got);
    progress.Advance(1, "advancing the streams");
  });
  BlockLosses losses;
  for (const BlockLosses& part : parts) {
    losses.rtn += part.rtn;
    losses.final += part.final;
  }
  const auto tokens = static_cast<double>(stream.windows * stream.length);
  losses.rtn /= tokens;
  losses.final /= tokens;
  if (!same) CheckLoss("rounding to nearest", blocks.original.index, losses.rtn);
  CheckLoss("quantized block", blocks.original.index, losses.final);
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin;
  losses.seconds = elapsed.count() / (same ? 2 : 3);  // forward passes a batch
  return losses;
}

void WriteStreams(const std::string& path, const Streams& streams) {
  const auto spec = [](const char* name, const at::Tensor& x) {
    return TensorSpec{name, x.scalar_type(), x.sizes().vec()};
  };
  SafetensorsWriter writer(path, {spec("x_fp", streams.x_fp), spec("x_q", streams.x_q)});
  writer.Append("x_fp", streams.x_fp);
  writer.Append("x_q", streams.x_q);
  writer.Finish();
}

Streams ReadStreams(const std::string& path) {
  const auto file = SafetensorsFile::Open(path);
  const auto read = [&](const char* name) {
    const TensorInfo* info = file->Find(name);
    if (info == nullptr || info->dtype != at::kFloat) {
      throw EngineError(FailureClass::kEnvironment, "CHECKPOINT_CORRUPT",
                        StrCat(path, ": no fp32 tensor ", name));
    }
    at::Tensor value = file->View(*info).clone();
    file->Release(*info);
    return value;
  };
  return {read("x_fp"), read("x_q")};
}

}  // namespace quantry::engine
