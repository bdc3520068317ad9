#pragma once

#include <map>
#include <string>
#include <vector>

#include "worker/engine/methods/method.h"
#include "worker/engine/methods/tesseraq/options.h"
#include "worker/engine/quant/grid.h"

namespace quantry::engine {

// TesseraQ (Li and Panda, arXiv 2410.19103; spec: tesseraq.md): transformed
// and clipped weights, then progressive adaptive rounding of all linears of a
// block together against the full-precision chain, scales tuned along.
class Tesseraq : public Method {
 public:
  explicit Tesseraq(const TesseraqOptions& options) : options_(options) {}
  int64_t Steps(const Architecture& architecture, const ModelConfig& config,
                const StreamShape& stream) const override;
  int64_t WorkingBytes(const Architecture& architecture, const ModelConfig& config,
                       const StreamShape& stream, const at::Device& device) const override;
  StreamShape DefaultCalibration() const override;
  const ModelTuningOptions* Tuning() const override;
  ComputeChoice Compute() const override { return options_.compute; }
  void Check(const StreamShape& stream) const override;
  MethodResult Quantize(const BlockTask& task, ProgressSink& progress) const override;

 private:
  // What rounding starts from: the block with transformed weights, and the grid
  // of each linear.
  struct Start {
    Block block;
    std::vector<GroupGrid> grids;
    std::map<std::string, double> metrics;
  };
  int64_t StartSteps(const Architecture& architecture, const ModelConfig& config,
                     const StreamShape& stream) const;
  int64_t StartBytes(const Architecture& architecture, const ModelConfig& config,
                     const StreamShape& stream, const at::Device& device) const;
  Start Initialize(const BlockTask& task, const at::Tensor& targets, ProgressSink& progress) const;
  // Grids with ranges tuned by SignRound.
  void TuneStart(const BlockTask& task, const at::Tensor& targets, Start& start,
                 ProgressSink& progress) const;
  TrainedBlock Trained(const BlockTask& task, const Start& start) const;
  // Puts losses of rounding to nearest on the starting grid into `metrics`. Returns
  // the one that training lowers: with token_energy_limit not that of all tokens
  // alike, which reports tell.
  double MeasureStart(const BlockTask& task, const Start& start, const BlockObjective& objective,
                      std::map<std::string, double>& metrics) const;
  double HeldOutLoss(const BlockObjective& objective, const TrainableTensors& at) const;
  // Where the windows held out say that what was learned is worse than the
  // start, it is given up.
  void Guard(const BlockObjective& objective, TrainedBlock& trained,
             std::map<std::string, double>& metrics) const;
  static QuantizedBlock Finish(const BlockTask& task, const Block& start,
                               const TrainedBlock& trained);

  TesseraqOptions options_;
};

}  // namespace quantry::engine
