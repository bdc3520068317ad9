#include "worker/engine/pipeline/restoration.h"

#include <filesystem>

#include "worker/engine/base/file.h"
#include "worker/engine/base/sha256.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/evaluation/evaluator.h"
#include "worker/engine/export/model_files.h"
#include "worker/engine/methods/batches.h"
#include "worker/engine/methods/block_weights.h"
#include "worker/engine/model/safetensors.h"
#include "worker/engine/nn/transformer.h"
#include "worker/engine/pipeline/checkpoints.h"
#include "worker/engine/pipeline/save_pace.h"
#include "worker/engine/pipeline/streams.h"
#include "worker/engine/pipeline/training_file.h"
#include "worker/engine/pipeline/warnings.h"
#include "worker/engine/reconstruct/lora.h"
#include "worker/engine/reconstruct/model_backward.h"

namespace quantry::engine {
namespace {

constexpr char kFolder[] = "first-pass";
constexpr char kAdapters[] = "adapters.safetensors";

// Adds the folder's name to files below it.
std::vector<HashedFile> Below(const std::vector<HashedFile>& files) {
  std::vector<HashedFile> below = files;
  for (HashedFile& file : below) file.path = StrCat(kFolder, "/", file.path);
  return below;
}

class Restoration : public TrainingStore {
 public:
  explicit Restoration(const RestorationTask& task)
      : task_(task),
        dir_(task.dir + "/" + kFolder),
        fingerprint_(Sha256OfText("first pass " + Fingerprint(task.job, task.inputs, task.device))),
        checkpoints_(dir_, fingerprint_),
        pace_(task.clock) {}

  RestorationResult Run() {
    FirstPass();
    std::vector<Block> quantized = Blocks();
    RestorationResult result;
    result.perplexity_first_pass = Perplexity(quantized);
    const LoraOptions& options = task_.job.preprocessing->lora;
    const RopeTable rope = Rope(task_.inputs.corpus.size(1));
    const LoraReport report = TrainLora(original(), rope, task_.inputs.corpus, task_.device,
                                        options, this, quantized, task_.progress);
    RoundAsStored(quantized);
    for (Block& block : quantized) block.activations = {};  // the file's model is dense
    result.perplexity_restored = Perplexity(quantized);
    Write(quantized);
    result.model = Checkpoint::Open(task_.restored_dir);
    result.files = Files();
    result.first_pass = [checkpoints = checkpoints_](int index) {
      return checkpoints.Load(index).block;
    };
    result.updates = options.steps;
    result.loss_first = report.loss_first;
    result.loss_last = report.loss_last;
    result.relative_change = report.relative_change;
    return result;
  }

  std::optional<TrainingState> Load() override {
    const std::string path = dir_ + "/" + kAdapters;
    std::optional<TrainingState> state = ReadTrainingFile(path, fingerprint_);
    if (!state && Exists(path)) {
      task_.warn(path + " is damaged or of another job: the adapters start over");
    }
    return state;
  }

  void Save(const TrainingState& state, bool finished) override {
    pace_.Keep(finished, [&] {
      WriteTrainingFile(dir_ + "/" + kAdapters, fingerprint_, state);
      task_.events.Checkpoint(0, Files());
    });
  }

 private:
  const Checkpoint& original() const { return *task_.inputs.source; }
  int blocks() const { return static_cast<int>(original().config().num_layers); }
  RopeTable Rope(int64_t length) const {
    return MakeRopeTable(original().architecture(), original().config(), length, task_.device);
  }

  // Files of the first pass, the adapters among them once there are some.
  std::vector<HashedFile> Files() const {
    std::vector<HashedFile> files = first_files_;
    const std::string path = dir_ + "/" + kAdapters;
    if (Exists(path)) {
      const FileDigest digest = Sha256OfFile(path);
      files.push_back({kAdapters, digest.bytes, digest.sha256});
    }
    return Below(files);
  }

  void FirstPass() {
    const StreamShape shape = ShapeOfStream(task_.inputs.calibration);
    const int64_t per_block =
        task_.job.method->FirstPass().Steps(original().architecture(), original().config(), shape) +
        Batches(shape);
    Streams streams;
    const int done =
        checkpoints_.Resume(blocks(), shape.windows > 0 ? &streams : nullptr, task_.warn);
    if (done > 0) {
      first_files_ = checkpoints_.Files();
      task_.progress.Advance(Batches(shape) + done * per_block, "taken from the checkpoint");
    } else if (shape.windows > 0) {
      streams = EmbedWindows(original(), task_.inputs.calibration, task_.device,
                             [&] { task_.progress.Advance(1, "embedding"); });
    }
    const RopeTable rope = shape.windows > 0 ? Rope(shape.length) : RopeTable();
    for (int index = done; index < blocks(); ++index) QuantizeBlock(index, rope, streams);
  }

  void QuantizeBlock(int index, const RopeTable& rope, Streams& streams) {
    const Job& job = task_.job;
    const double began = task_.clock();
    const Block block = LoadBlock(original(), index, task_.device);
    const BlockTask task{block,
                         rope,
                         streams.x_fp,
                         streams.x_q,
                         job.grid,
                         task_.scale_dtype,
                         DenseDtypes(original(), index),
                         static_cast<uint64_t>(job.seed),
                         task_.device,
                         job.activations};
    MethodResult result = job.method->FirstPass().Quantize(task, task_.progress);
    CheckStorage(result.block, result.metrics);
    BlockReport report;
    report.index = index;
    report.metrics = std::move(result.metrics);
    if (streams.defined()) {
      const Block final = Rebuild(block, result.block, job.activations);
      report.loss_final =
          AdvanceStreams({block, final, final}, rope, task_.device, streams, task_.progress).final;
    }
    checkpoints_.StoreBlock(result.block, report);
    const bool last = index + 1 == blocks();
    first_files_ = checkpoints_.Commit(index + 1, streams.defined() && !last ? &streams : nullptr);
    task_.events.Checkpoint(0, Files());
    task_.progress.FirstPassBlock(task_.clock() - began);
  }

  // The first pass's model, fp32. Warns of what its storage could not hold.
  std::vector<Block> Blocks() const {
    std::vector<Block> quantized;
    std::vector<BlockReport> reports;
    for (int index = 0; index < blocks(); ++index) {
      const StoredBlock stored = checkpoints_.Load(index);
      quantized.push_back(
          Rebuild(LoadBlock(original(), index, task_.device), stored.block, task_.job.activations));
      reports.push_back(stored.report);
    }
    const std::string clipped = ClippedWarning(reports);
    if (!clipped.empty()) task_.warn("preprocessing's first pass: " + clipped);
    return quantized;
  }

  double Perplexity(const std::vector<Block>& model) const {
    if (!task_.inputs.evaluation.defined()) return 0;
    EvaluationOptions options = task_.evaluation;
    options.blocks = [&](int index) { return model.at(index); };
    int64_t told = 0;
    const auto result =
        Evaluate(original(), task_.inputs.evaluation, {}, options, [&](int64_t done, int64_t) {
          task_.progress.Advance(done - told, "evaluating");
          told = done;
        });
    return result.perplexity_dense;
  }

  // Weights become what the checkpoint will hold of them: that is the model the
  // second pass starts from.
  void RoundAsStored(std::vector<Block>& model) const {
    for (Block& block : model) {
      const std::string prefix = original().BlockPrefix(block.index);
      const auto round = [&](at::Tensor& value, const std::string& key) {
        if (value.defined()) value = RoundToStorage(value, original().Info(prefix + key).dtype);
      };
      for (Linear& linear : block.linears) {
        round(linear.weight, linear.name + ".weight");
        round(linear.bias, linear.name + ".bias");
      }
      for (Norm& norm : block.norms) {
        round(norm.weight, norm.name + ".weight");
        round(norm.bias, norm.name + ".bias");
      }
    }
  }

  void Write(const std::vector<Block>& model) const {
    std::error_code ignored;
    std::filesystem::remove_all(task_.restored_dir, ignored);
    std::filesystem::create_directories(task_.restored_dir);
    std::map<std::string, at::Tensor> changed;
    for (const Block& block : model) {
      const std::string prefix = original().BlockPrefix(block.index);
      for (const Linear& linear : block.linears) {
        changed[prefix + linear.name + ".weight"] = linear.weight;
        if (linear.bias.defined()) changed[prefix + linear.name + ".bias"] = linear.bias;
      }
      for (const Norm& norm : block.norms) {
        changed[prefix + norm.name + ".weight"] = norm.weight;
        if (norm.bias.defined()) changed[prefix + norm.name + ".bias"] = norm.bias;
      }
    }
    std::vector<TensorSpec> specs;
    for (const std::string& name : original().names()) {
      specs.push_back({name, original().Info(name).dtype, original().Info(name).shape});
    }
    SafetensorsWriter writer(task_.restored_dir + "/model.safetensors", specs);
    for (const TensorSpec& spec : specs) {
      const auto found = changed.find(spec.name);
      writer.Append(spec.name, found == changed.end() ? original().View(spec.name)
                                                      : found->second.to(spec.dtype));
    }
    writer.Finish();
    WriteFileAtomically(
        task_.restored_dir + "/config.json",
        ReadFile(original().dir() + "/config.json", uint64_t{16} << 20, "INVALID_CHECKPOINT"));
    CopyModelFiles(original().dir(), task_.restored_dir);
  }

  const RestorationTask& task_;
  std::string dir_;
  std::string fingerprint_;
  Checkpoints checkpoints_;
  std::vector<HashedFile> first_files_;
  SavePace pace_;
};

}  // namespace

RestorationResult RestoreModel(const RestorationTask& task) { return Restoration(task).Run(); }

int64_t RestorationSteps(const Job& job, const Checkpoint& checkpoint,
                         const StreamShape& calibration, const StreamShape& evaluation,
                         const EvaluationOptions& options) {
  if (!job.preprocessing) return 0;
  const int64_t per_block =
      job.method->FirstPass().Steps(checkpoint.architecture(), checkpoint.config(), calibration) +
      Batches(calibration);
  const int64_t measured =
      evaluation.windows == 0
          ? 0
          : 2 * EvaluationSteps(checkpoint, evaluation.windows, evaluation.length, false, options);
  return Batches(calibration) + checkpoint.config().num_layers * per_block +
         job.preprocessing->lora.steps * PassSteps(checkpoint.config().num_layers) + measured;
}

}  // namespace quantry::engine
