#pragma once

#include <ATen/ATen.h>

#include <functional>
#include <string>

#include "worker/engine/methods/method.h"
#include "worker/engine/model/checkpoint.h"
#include "worker/engine/nn/block.h"

namespace quantry::engine {

// Hidden states of all calibration windows before some block, in host memory:
// fp32 [windows, length, hidden]. Both undefined when a job has no
// calibration. Before block 0 both are equal.
struct Streams {
  at::Tensor x_fp;  // through the original blocks
  at::Tensor x_q;   // through the quantized blocks

  bool defined() const { return x_fp.defined(); }
};

// Of token windows int64 [windows, length]; undefined ones are no windows.
StreamShape ShapeOfStream(const at::Tensor& windows);

// Embeds token windows int64 [windows, length]. `done` is called after each
// batch of windows (as many as Batches() says).
Streams EmbedWindows(const Checkpoint& checkpoint, const at::Tensor& windows,
                     const at::Device& device, const std::function<void()>& done);

// Losses of one block: mean over tokens of the summed squared error between
// the original block on x_fp and a quantized block on x_q.
struct BlockLosses {
  double rtn = 0;      // linears rounded to nearest, nothing else changed
  double final = 0;    // the method's block
  double seconds = 0;  // one forward pass of the whole stream, on average
};

struct BlockVariants {
  const Block& original;
  const Block& rtn;  // may be `final` itself
  const Block& final;
};

// Moves both streams through a block, in place, batch by batch, and measures
// the losses on the way. Throws EngineError "NON_FINITE_LOSS".
BlockLosses AdvanceStreams(const BlockVariants& blocks, const RopeTable& rope,
                           const at::Device& device, Streams& streams, ProgressSink& progress);

// Streams on disk: safetensors with "x_fp" and "x_q". Written atomically.
void WriteStreams(const std::string& path, const Streams& streams);
Streams ReadStreams(const std::string& path);

}  // namespace quantry::engine
