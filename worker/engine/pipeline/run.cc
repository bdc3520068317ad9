#include "worker/engine/pipeline/run.h"

#include <ATen/Parallel.h>

#include <chrono>
#include <cmath>
#include <ctime>
#include <filesystem>
#include <functional>
#include <limits>
#include <optional>

#include "worker/engine/base/error.h"
#include "worker/engine/base/memory.h"
#include "worker/engine/base/sha256.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/device/device.h"
#include "worker/engine/evaluation/evaluator.h"
#include "worker/engine/methods/batches.h"
#include "worker/engine/methods/block_weights.h"
#include "worker/engine/nn/transformer.h"
#include "worker/engine/pipeline/checkpoints.h"
#include "worker/engine/pipeline/inputs.h"
#include "worker/engine/pipeline/manifest.h"
#include "worker/engine/pipeline/output_folders.h"
#include "worker/engine/pipeline/report.h"
#include "worker/engine/pipeline/save_pace.h"
#include "worker/engine/pipeline/steps.h"
#include "worker/engine/pipeline/streams.h"
#include "worker/engine/pipeline/trace.h"
#include "worker/engine/pipeline/warnings.h"
#include "worker/engine/reconstruct/model_backward.h"
#include "worker/engine/reconstruct/model_tuning.h"

namespace quantry::engine {
namespace {

std::string CheckpointDir(const Job& job) {
  return job.checkpoint_dir.empty() ? job.output_dir + "/.checkpoint" : job.checkpoint_dir;
}

std::string UtcNow() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  char text[32];
  std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &utc);
  return text;
}

double UnixSeconds() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

// What an output's readers must do beside its weights.
std::string ActivationNote(const ActivationSpec& activations) {
  if (!activations.enabled()) return "";
  return StrCat(
      " Holds weights only: quality was measured with the input of every quantized linear "
      "quantized to ",
      activations.bits,
      " bits, dynamically per token, asymmetric; the engine that loads it must do that, "
      "and one that leaves activations in 16 bits computes something else.");
}

// In place of what the layout says: no engine that reads the layout rotates.
constexpr char kRotatedOnline[] =
    "The model is rotated and wants the inputs of its attention output and down projections "
    "rotated online (quantry_rotation in config.json): only quantry-engine does that, every "
    "other engine computes nonsense from it.";

// Keeps stages of a block in the checkpoint, but not so often that it costs
// more than a few percent of the time.
class StageKeeper : public StageStore {
 public:
  StageKeeper(Checkpoints& checkpoints, EventWriter& events, const Seconds& clock)
      : checkpoints_(checkpoints), events_(events), pace_(clock) {}

  std::optional<StageState> Load(int block) override { return checkpoints_.LoadStage(block); }

  void Save(int block, const StageState& state) override {
    pace_.Keep(false, [&] { events_.Checkpoint(block, checkpoints_.CommitStage(block, state)); });
  }

 private:
  Checkpoints& checkpoints_;
  EventWriter& events_;
  SavePace pace_;
};

// The same for what all blocks have learned together.
class TuningKeeper : public TrainingStore {
 public:
  TuningKeeper(int blocks, Checkpoints& checkpoints, EventWriter& events, const Seconds& clock)
      : blocks_(blocks), checkpoints_(checkpoints), events_(events), pace_(clock) {}

  std::optional<TrainingState> Load() override { return checkpoints_.LoadTuning(); }

  void Save(const TrainingState& state, bool finished) override {
    if (finished) return;  // it is kept as tuned blocks
    pace_.Keep(false,
               [&] { events_.Checkpoint(blocks_, checkpoints_.CommitTuning(blocks_, state)); });
  }

 private:
  int blocks_;
  Checkpoints& checkpoints_;
  EventWriter& events_;
  SavePace pace_;
};

// One job's run; each stage is one method.
class Run {
 public:
  // `device`: nullopt = the job's.
  Run(const Job& job, std::optional<at::Device> device, EventWriter& events, const Seconds& clock)
      : job_(job), given_(device), events_(events), clock_(clock), began_(clock()) {}

  void Execute() {
    events_.StageChanged(Stage::kLoading);
    Load();
    Restore();
    Calibrate();
    Quantize();
    Pack();
    Evaluate();
    Finish();
  }

 private:
  void Load();
  void Restore();
  void Resume(const OnBytes& loaded);
  void WarnOfLongWindows();
  void Calibrate();
  void Quantize();
  void QuantizeBlock(int index);
  // Reads what preprocessing's first pass made of the block, for methods that ask.
  std::function<QuantizedBlock()> FirstPassOf(int index) const;
  void Tune();
  BlockLosses Advance(const Block& block, const QuantizedBlock& quantized);
  void Pack();
  void PackOutput(const Layout& layout);
  void Remember(const QuantizedBlock& block);
  std::vector<PlannedTensor> Plan() const;
  void Evaluate();
  void Finish();

  // Nothing where there is nothing to tell.
  void Warn(const std::string& message) {
    if (message.empty()) return;
    manifest_.warnings.push_back(message);
    events_.Warning(message);
  }
  // What is quantized and written; the original, but for rotated models.
  const Checkpoint& checkpoint() const { return *inputs_.source; }
  std::string RotatedDir() const { return CheckpointDir(job_) + "/rotated"; }
  std::string RestoredDir() const { return CheckpointDir(job_) + "/restored"; }
  int blocks() const { return static_cast<int>(checkpoint().config().num_layers); }
  EvaluationOptions evaluation_options() const {
    EvaluationOptions options;
    options.device = device_;
    options.quantized_ends = &checkpoint();
    const StreamShape stream = ShapeOfStream(inputs_.calibration);
    options.max_stream_bytes =
        EvaluationStreamBytes(stream.windows * stream.length, checkpoint().config().hidden_size);
    return options;
  }

  const Job& job_;
  std::optional<at::Device> given_;
  EventWriter& events_;
  const Seconds& clock_;
  double began_;
  at::Device device_ = at::kCPU;
  Inputs inputs_;
  at::ScalarType scale_dtype_ = at::kHalf;
  std::unique_ptr<Checkpoints> checkpoints_;
  std::unique_ptr<ProgressTracker> progress_;
  Streams streams_;
  RopeTable rope_;
  int resumed_ = 0;
  std::vector<std::string> digests_;  // of every block, as it was computed
  // Salient columns of every block's linears; mixed weights only.
  std::vector<std::map<std::string, int64_t>> salient_;
  Manifest manifest_;
};

void Run::Load() {
  ConfigureRuntime(job_.threads);
  device_ = given_ ? *given_ : OpenDevice(job_.device);
  LoadingMeter meter(events_, clock_);
  const OnBytes loaded = [&](uint64_t bytes) { meter.Count(bytes); };
  inputs_ = OpenInputs(job_, loaded);
  scale_dtype_ = ScaleDtypeOf(checkpoint());
  CreateOutputFolder(job_.output_dir);
  checkpoints_ =
      std::make_unique<Checkpoints>(CheckpointDir(job_), Fingerprint(job_, inputs_, device_));
  Resume(loaded);
  // Now, and not after hours of other blocks; the fingerprint vouches for those of a resumed job.
  if (resumed_ == 0) inputs_.checkpoint->CheckFinite(loaded);
  if (job_.rotation.enabled) inputs_.source = OpenRotated(job_, inputs_, RotatedDir(), loaded);
  WarnOfLongWindows();
  Warn(PrunedWarning(*job_.method_row, *inputs_.checkpoint));
  progress_ = std::make_unique<ProgressTracker>(
      PlanSteps(job_, checkpoint(), ShapeOfStream(inputs_.calibration),
                ShapeOfStream(inputs_.evaluation), evaluation_options()),
      events_, clock_, began_, [this] { return PeakDeviceBytes(device_); });
  events_.Started(DescribeDevice(device_), blocks(), resumed_, inputs_.checkpoint->parameters());
}

// Rotary positions go on for ever; what the model learned of them does not.
void Run::WarnOfLongWindows() {
  const ModelConfig& config = checkpoint().config();
  const bool stretched = config.rope_scaling.kind == RopeScaling::Kind::kLinear;
  const auto most = static_cast<int64_t>(static_cast<double>(config.max_positions) *
                                         (stretched ? config.rope_scaling.factor : 1.0));
  const auto look = [&](const char* what, const at::Tensor& windows) {
    if (!windows.defined() || windows.size(1) <= most) return;
    Warn(StrCat(what, " windows have ", windows.size(1), " tokens, the model knows ", most,
                " positions (max_position_embeddings): perplexities beyond them mean little"));
  };
  look("calibration", inputs_.calibration);
  look("evaluation", inputs_.evaluation);
  look("preprocessing", inputs_.corpus);
}

void Run::Resume(const OnBytes& loaded) {
  resumed_ = checkpoints_->Resume(
      blocks(), inputs_.calibration.defined() ? &streams_ : nullptr,
      [&](const std::string& message) { Warn(message); }, loaded);
  for (int i = 0; i < resumed_; ++i) {
    const StoredBlock stored = checkpoints_->Load(i);
    manifest_.blocks.push_back(stored.report);
    Remember(stored.block);
  }
}

void Run::Restore() {
  if (!job_.preprocessing) return;
  progress_->EnterStage(Stage::kPreprocessing);
  EvaluationOptions options = evaluation_options();
  options.quantized_ends = nullptr;
  const RestorationTask task{job_,
                             inputs_,
                             device_,
                             scale_dtype_,
                             CheckpointDir(job_),
                             RestoredDir(),
                             options,
                             events_,
                             *progress_,
                             clock_,
                             [this](const std::string& message) { Warn(message); }};
  manifest_.preprocessing = RestoreModel(task);
  inputs_.source = manifest_.preprocessing->model;
  checkpoints_->Carry(manifest_.preprocessing->files);
}

void Run::Calibrate() {
  progress_->EnterStage(Stage::kCalibrating);
  if (!inputs_.calibration.defined()) return;
  if (resumed_ > 0) {
    progress_->Advance(Batches(ShapeOfStream(inputs_.calibration)), "taken from the checkpoint");
  } else {
    streams_ = EmbedWindows(checkpoint(), inputs_.calibration, device_,
                            [&] { progress_->Advance(1, "embedding"); });
  }
  rope_ = MakeRopeTable(checkpoint().architecture(), checkpoint().config(),
                        inputs_.calibration.size(1), device_);
}

void Run::Quantize() {
  progress_->EnterStage(Stage::kQuantizing);
  progress_->Resume(resumed_);
  for (int index = resumed_; index < blocks(); ++index) QuantizeBlock(index);
  Tune();
  Warn(ClippedWarning(manifest_.blocks));
  Warn(NearestWarning(manifest_.blocks));
  streams_ = Streams();
  ReturnFreedMemory();
}

std::function<QuantizedBlock()> Run::FirstPassOf(int index) const {
  if (!manifest_.preprocessing) return {};
  return [this, index] { return manifest_.preprocessing->first_pass(index); };
}

void Run::Tune() {
  const ModelTuningOptions* tuning = job_.method->Tuning();
  if (tuning == nullptr) return;
  if (checkpoints_->tuned()) {
    return progress_->Advance(tuning->steps * PassSteps(blocks()), "taken from the checkpoint");
  }
  streams_.x_q = at::Tensor();  // its last use was the last block
  std::vector<StoredBlock> stored;
  std::vector<QuantizedBlock> quantized;
  for (int index = 0; index < blocks(); ++index) {
    stored.push_back(checkpoints_->Load(index));
    quantized.push_back(stored.back().block);
  }
  const ModelTuningTask task{checkpoint(),
                             rope_,
                             inputs_.calibration,
                             streams_.x_fp,
                             device_,
                             job_.activations,
                             [this](int block) { return DenseDtypes(checkpoint(), block); }};
  ModelTuningOptions options = *tuning;
  options.seed = static_cast<uint64_t>(job_.seed);
  TuningKeeper keeper(blocks(), *checkpoints_, events_, clock_);
  const ModelTuningReport report = TuneModel(task, options, &keeper, quantized, *progress_);
  stored.back().report.metrics["tuning_kl_first"] = report.first_loss;
  stored.back().report.metrics["tuning_kl_last"] = report.last_loss;
  if (report.retries > 0) stored.back().report.metrics["tuning_retries"] = report.retries;
  for (int index = 0; index < blocks(); ++index) {
    CheckStorage(quantized[index], stored[index].report.metrics);
    stored[index].block = quantized[index];
    digests_.at(index) = BlockDigest(quantized[index]);
    manifest_.blocks.at(index) = stored[index].report;
  }
  events_.Checkpoint(blocks(), checkpoints_->CommitTuned(stored));
}

BlockLosses Run::Advance(const Block& block, const QuantizedBlock& quantized) {
  const Block final = Rebuild(block, quantized, job_.activations);
  if (job_.method_row->name == "rtn") {
    return AdvanceStreams({block, final, final}, rope_, device_, streams_, *progress_);
  }
  const Block rtn = RoundToNearest(block, job_.grid, scale_dtype_, job_.activations);
  return AdvanceStreams({block, rtn, final}, rope_, device_, streams_, *progress_);
}

void Run::QuantizeBlock(int index) {
  inputs_.watch.Check();
  const double began = clock_();
  progress_->BlockStarted();
  const Block block = LoadBlock(checkpoint(), index, device_);
  StageKeeper stages(*checkpoints_, events_, clock_);
  const BlockTask task{block,
                       rope_,
                       streams_.x_fp,
                       streams_.x_q,
                       job_.grid,
                       scale_dtype_,
                       DenseDtypes(checkpoint(), index),
                       static_cast<uint64_t>(job_.seed),
                       device_,
                       job_.activations,
                       &stages,
                       FirstPassOf(index)};
  MethodResult result = job_.method->Quantize(task, *progress_);
  ReturnFreedMemory();
  CheckStorage(result.block, result.metrics);
  BlockReport report;
  report.index = index;
  report.metrics = std::move(result.metrics);
  report.loss_rtn = report.loss_final = std::numeric_limits<double>::quiet_NaN();
  BlockLosses losses;
  if (streams_.defined()) {
    losses = Advance(block, result.block);
    ReturnFreedMemory();
    report.loss_rtn = losses.rtn;
    report.loss_final = losses.final;
  }
  report.seconds = clock_() - began;
  Remember(result.block);
  checkpoints_->StoreBlock(result.block, report);
  const bool last = index + 1 == blocks() && job_.method->Tuning() == nullptr;
  const auto& files =
      checkpoints_->Commit(index + 1, streams_.defined() && !last ? &streams_ : nullptr);
  manifest_.blocks.push_back(report);
  progress_->Advance(1, "checkpoint");
  progress_->BlockDone(report, losses.seconds);
  events_.BlockDone(report);
  events_.Checkpoint(index + 1, files);
}

void Run::Remember(const QuantizedBlock& block) {
  digests_.push_back(BlockDigest(block));
  auto& salient = salient_.emplace_back();
  for (const QuantizedLinear& linear : block.linears) {
    if (linear.mixed) salient[linear.name] = linear.mixed->salient_columns();
  }
}

std::vector<PlannedTensor> Run::Plan() const {
  std::vector<PlannedTensor> plan;
  if (job_.method_row->weights == WeightKind::kMixedBinary) {
    plan = PlanTensors(checkpoint(), [&](int block, const std::string& linear, int64_t) {
      return salient_.at(block).at(linear);
    });
  } else {
    plan = PlanTensors(checkpoint());
  }
  StateValueBits(*job_.method, plan);
  return plan;
}

void Run::PackOutput(const Layout& layout) {
  const std::string folder(layout.format());
  const std::string dir = job_.output_dir + "/" + folder;
  PrepareFormatFolder(dir);
  // What the engine computed, whatever has happened to the files since.
  const auto read = [&](int index) {
    QuantizedBlock block = checkpoints_->Load(index).block;
    if (BlockDigest(block) == digests_.at(index)) return block;
    throw EngineError(FailureClass::kEnvironment, "CHECKPOINT_CORRUPT",
                      StrCat("block ", index, " in ", CheckpointDir(job_),
                             " changed after it was computed; run the job again"));
  };
  Exporter exporter(checkpoint(), layout, dir, Plan());
  for (int index = 0; index < blocks(); ++index) {
    exporter.Add(read(index));
    progress_->Advance(1, "packing");
  }
  OutputSummary summary = exporter.Finish();
  exporter.Verify(read, [&] { progress_->Advance(1, "verifying"); });
  if (job_.rotation.online) summary.compatibility = kRotatedOnline;
  summary.compatibility += ActivationNote(job_.activations);
  summary.path = folder;
  summary.verified = true;
  manifest_.outputs.push_back(summary);
  for (const std::string& warning : exporter.warnings()) Warn(warning);
  for (const std::string& name : exporter.files()) {
    const FileDigest digest = Sha256OfFile(dir + "/" + name);
    manifest_.files.push_back({folder + "/" + name, digest.bytes, digest.sha256});
  }
}

void Run::Pack() {
  progress_->EnterStage(Stage::kPacking);
  for (const OutputFormatRow* row : job_.outputs) {
    PackOutput(*job_.MakeLayout(*row, scale_dtype_));
  }
  inputs_.watch.Check();  // what outputs took from it, they have
  manifest_.bits =
      CountBits(*inputs_.checkpoint, Plan(), *job_.MakeLayout(*job_.outputs[0], scale_dtype_),
                manifest_.outputs[0].bytes);
}

void Run::Evaluate() {
  if (!inputs_.evaluation.defined()) return;
  progress_->EnterStage(Stage::kEvaluating);
  int64_t told = 0;
  manifest_.quality = quantry::engine::Evaluate(
      *inputs_.checkpoint, inputs_.evaluation,
      [&](int index) {
        return Rebuild(LoadBlock(checkpoint(), index, device_), checkpoints_->Load(index).block,
                       job_.activations);
      },
      evaluation_options(),
      [&](int64_t done, int64_t) {
        progress_->Advance(done - told, "evaluating");
        told = done;
      });
  manifest_.evaluation_length = inputs_.evaluation.size(1);
  if (!std::isfinite(manifest_.quality->perplexity_quantized)) {
    Warn("the perplexity of the quantized model is not finite and left out");
  }
  manifest_.quality_gate_failed = GateFails(job_.quality_gate, *manifest_.quality);
  inputs_.watch.Check();  // it read the weights once more
}

void Run::Finish() {
  manifest_.inputs = inputs_.files;
  manifest_.run_seconds = clock_() - began_;
  manifest_.stage_seconds = progress_->stage_seconds();
  manifest_.peak_rss_bytes = PeakRssBytes();
  manifest_.device = DescribeDevice(device_);
  manifest_.device_type = device_.is_cuda() ? "cuda" : "cpu";
  manifest_.threads = at::get_num_threads();
  manifest_.compute = ComputeOn(device_, job_.method->Compute());
  manifest_.base_model = BaseModel(inputs_.checkpoint->config().json);
  manifest_.model_type = checkpoint().config().model_type;
  manifest_.create_time = UtcNow();
  for (const HashedFile& file : WriteReport(job_, manifest_)) manifest_.files.push_back(file);
  if (auto trace = WriteTrace(job_, progress_->spans(), UnixSeconds() - clock_())) {
    manifest_.files.push_back(*std::move(trace));
  }
  const std::string sha256 = WriteManifest(job_, manifest_);
  std::error_code ignored;
  if (job_.rotation.enabled) std::filesystem::remove_all(RotatedDir(), ignored);
  if (job_.preprocessing) std::filesystem::remove_all(RestoredDir(), ignored);
  if (job_.preprocessing && job_.checkpoint_dir.empty()) {
    std::filesystem::remove_all(CheckpointDir(job_) + "/first-pass", ignored);
  }
  if (job_.checkpoint_dir.empty()) checkpoints_->Clear();
  events_.Completed(sha256, manifest_.quality_gate_failed);
}

}  // namespace

void RunJob(const Job& job, EventWriter& events, const Seconds& clock) {
  Run(job, std::nullopt, events, clock).Execute();
}

void RunJobOn(const at::Device& device, const Job& job, EventWriter& events, const Seconds& clock) {
  Run(job, device, events, clock).Execute();
}

}  // namespace quantry::engine
