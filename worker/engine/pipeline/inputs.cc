#include "worker/engine/pipeline/inputs.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "worker/engine/base/error.h"
#include "worker/engine/base/file.h"
#include "worker/engine/base/sha256.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/device/device.h"
#include "worker/engine/export/exporter.h"
#include "worker/engine/export/model_files.h"
#include "worker/engine/methods/linear_shapes.h"
#include "worker/engine/methods/quarot/rotation.h"
#include "worker/engine/nn/online_rotation.h"
#include "worker/engine/nn/products.h"
#include "worker/engine/pipeline/versions.h"
#include "worker/engine/quant/grid.h"
#include "worker/engine/tokenizer/tokenizer.h"

namespace quantry::engine {
namespace {

bool NeedsTokenizer(const std::optional<TextJob>& text) {
  return text && text->source.format == TextFormat::kText;
}

at::Tensor Windows(const TextJob& text, const Tokenizer* tokenizer, const Checkpoint& checkpoint) {
  CheckSequenceLength(checkpoint.architecture(), checkpoint.config(), text.windows.length);
  const std::vector<int32_t> tokens =
      ReadTokens(text.source, tokenizer, checkpoint.config().vocab_size);
  return CutWindows(tokens, text.windows, text.source);
}

std::shared_ptr<const Tokenizer> LoadTokenizer(const Job& job) {
  return Tokenizer::Load(job.model_dir + "/tokenizer.json");
}

std::string FileName(const std::string& path) {
  return std::filesystem::path(path).filename().string();
}

// What may stand beside the weights and ends in the artifact.
std::vector<std::string> NamesBesideWeights() {
  std::vector<std::string> names = CopiedNames();
  names.insert(names.begin(), "config.json");
  return names;
}

// Whether the numbers depend on it: the others are only copied.
bool IsInput(const std::string& name) { return name == "config.json" || name == "tokenizer.json"; }

// Names are by role and file name: the same inputs in another place are the
// same inputs.
std::vector<HashedFile> HashInputs(const Job& job, const Checkpoint& checkpoint,
                                   const OnBytes& on_bytes, SourceWatch& watch) {
  std::vector<HashedFile> files;
  const auto add = [&](const std::string& path, const std::string& name) {
    const FileDigest digest = Sha256OfFile(path, on_bytes);
    files.push_back({name, digest.bytes, digest.sha256});
  };
  const auto add_model = [&](const std::string& path) {
    add(path, "model/" + FileName(path));
    watch.SetDigest(path, files.back().sha256);
  };
  for (const std::string& name : NamesBesideWeights()) {
    const std::string path = job.model_dir + "/" + name;
    if (!IsRegularFile(path)) continue;
    if (IsInput(name)) {
      add_model(path);
    } else {
      watch.SetDigest(path, Sha256OfFile(path).sha256);
    }
  }
  for (const std::string& path : checkpoint.files()) add_model(path);
  if (job.calibration) {
    const std::string& path = job.calibration->source.path;
    add(path, "calibration/" + FileName(path));
  }
  if (job.evaluation) {
    const std::string& path = job.evaluation->source.path;
    add(path, "evaluation/" + FileName(path));
  }
  if (job.preprocessing) {
    const std::string& path = job.preprocessing->corpus.source.path;
    add(path, "preprocessing/" + FileName(path));
  }
  return files;
}

// Before anything is hashed: a file that changes meanwhile is another one.
SourceWatch Watch(const Job& job, const Checkpoint& checkpoint) {
  SourceWatch watch;
  for (const std::string& path : checkpoint.files()) watch.Note(path);
  for (const std::string& name : NamesBesideWeights()) watch.Note(job.model_dir + "/" + name);
  return watch;
}

// Marks a rotated twin as whole: what it was made of, and of what files.
constexpr char kOrigin[] = "origin";

std::string MarkOf(const std::string& digest, const std::string& dir, const OnBytes& on_bytes) {
  std::vector<std::string> files = {dir + "/config.json"};
  for (const auto& entry : std::filesystem::directory_iterator(dir)) {
    if (FileName(entry.path()).find(".safetensors") == std::string::npos) continue;
    files.push_back(entry.path());
  }
  std::sort(files.begin() + 1, files.end());
  std::string mark = digest + "\n";
  for (const std::string& file : files) mark += Sha256OfFile(file, on_bytes).sha256 + "\n";
  return mark;
}

// Whether a whole, unharmed twin made from `digest` lies in `dir`.
bool IsTwinOf(const std::string& digest, const std::string& dir, const OnBytes& on_bytes) {
  for (const char* name : {kOrigin, "config.json"}) {
    if (!IsRegularFile(dir + "/" + name)) return false;
  }
  constexpr uint64_t kMostBytes = 1 << 20;
  std::error_code error;
  if (std::filesystem::file_size(dir + "/" + kOrigin, error) > kMostBytes || error) return false;
  const std::string mark = ReadFile(dir + "/" + kOrigin, kMostBytes, "INVALID_CHECKPOINT");
  return mark.starts_with(digest) && mark == MarkOf(digest, dir, on_bytes);
}

}  // namespace

void CheckWindows(const Job& job, const TextJob& text, const Checkpoint& checkpoint,
                  std::shared_ptr<const Tokenizer>& tokenizer) {
  if (tokenizer == nullptr && NeedsTokenizer(text)) tokenizer = LoadTokenizer(job);
  Windows(text, tokenizer.get(), checkpoint);
}

void CheckSource(const Checkpoint& checkpoint) {
  if (!OnlineRotation::IsWanted(checkpoint.config())) return;
  throw UserError("UNSUPPORTED_ARCHITECTURE",
                  StrCat(checkpoint.dir(),
                         " was made with online rotations (quantry_rotation in its config.json): "
                         "quantize the model that it was made from"),
                  {{"path", checkpoint.dir()}});
}

void CheckOutputs(const Job& job, const Checkpoint& checkpoint) {
  const std::vector<PlannedLinear> linears = PlannedLinears(PlanTensors(checkpoint));
  for (const OutputFormatRow* row : job.outputs) CheckShapes(*row, job.grid, linears);
  CheckModelFiles(checkpoint.dir());
}

Inputs OpenInputs(const Job& job, const OnBytes& on_bytes) {
  Inputs inputs;
  inputs.checkpoint = Checkpoint::Open(job.model_dir);
  const Checkpoint& checkpoint = *inputs.checkpoint;
  inputs.watch = Watch(job, checkpoint);
  CheckSource(checkpoint);
  CheckGrid(job.grid, LinearWidths(checkpoint.architecture(), checkpoint.config()));
  if (job.rotation.enabled) {
    Rotation(checkpoint.architecture(), checkpoint.config(), job.rotation.online, 0);
  }
  CheckOutputs(job, checkpoint);
  std::shared_ptr<const Tokenizer> tokenizer;
  const std::optional<TextJob> corpus =
      job.preprocessing ? std::optional(job.preprocessing->corpus) : std::nullopt;
  if (NeedsTokenizer(job.calibration) || NeedsTokenizer(job.evaluation) || NeedsTokenizer(corpus)) {
    tokenizer = LoadTokenizer(job);
  }
  if (job.calibration) {
    inputs.calibration = Windows(*job.calibration, tokenizer.get(), checkpoint);
  }
  if (job.evaluation) {
    inputs.evaluation = Windows(*job.evaluation, tokenizer.get(), checkpoint);
  }
  if (corpus) {
    CheckLora(job.preprocessing->lora, checkpoint.architecture(), checkpoint.config());
    inputs.corpus = Windows(*corpus, tokenizer.get(), checkpoint);
  }
  inputs.files = HashInputs(job, checkpoint, on_bytes, inputs.watch);
  inputs.source = inputs.checkpoint;
  return inputs;
}

std::shared_ptr<const Checkpoint> OpenRotated(const Job& job, const Inputs& inputs,
                                              const std::string& dir, const OnBytes& on_bytes) {
  nlohmann::ordered_json origin = {
      {"versions", Versions()}, {"seed", job.seed}, {"online", job.rotation.online}};
  for (const HashedFile& file : inputs.files) {
    if (file.path.rfind("model/", 0) == 0) origin[file.path] = file.sha256;
  }
  const std::string digest = Sha256OfText(origin.dump());
  if (!IsTwinOf(digest, dir, on_bytes)) {
    std::error_code ignored;
    std::filesystem::remove_all(dir, ignored);
    std::filesystem::create_directories(dir);
    WriteRotatedCheckpoint(*inputs.checkpoint, job.rotation, static_cast<uint64_t>(job.seed), dir,
                           kMaxShardBytes, on_bytes);
    WriteFileAtomically(dir + "/" + kOrigin, MarkOf(digest, dir, on_bytes));
  }
  // Always: the mark says nothing of them, and they may have changed since.
  CopyModelFiles(job.model_dir, dir);
  return Checkpoint::Open(dir);
}

std::string Instructions(const Job& job, bool multiplies_bfloat16) {
  const bool may = job.method->Compute() != ComputeDtype::kFloat32;
  return at::get_cpu_capability() + (may && multiplies_bfloat16 ? " BF16" : "");
}

std::string Fingerprint(const Job& job, const Inputs& inputs, const at::Device& device) {
  nlohmann::ordered_json files = nlohmann::ordered_json::array();
  for (const HashedFile& file : inputs.files) {
    if (file.path.rfind("evaluation/", 0) != 0) files.push_back(file.sha256);
  }
  // Goes up when the same job would end in other bits than before.
  constexpr int kNumerics = 21;
  nlohmann::ordered_json all = {
      {"versions", Versions()},
      {"numerics", kNumerics},
      {"files", files},
      {"method", job.method_json},
      {"seed", job.seed},
      {"spec_digest", job.spec_digest},
      {"threads", at::get_num_threads()},
      {"instructions", Instructions(job, MultipliesBfloat16(device))},
      {"device", device.is_cuda() ? "cuda " + DeviceModel(device) : "cpu"}};
  if (job.calibration) {
    const WindowSpec& windows = job.calibration->windows;
    all["calibration"] = {windows.windows, windows.length, static_cast<int>(windows.sampling),
                          static_cast<int>(job.calibration->source.format)};
  }
  if (job.preprocessing) {
    // Where the corpus lies does not count; its hash stands among the files.
    auto given = nlohmann::ordered_json::parse(job.preprocessing->json);
    given["text"].erase("path");
    all["preprocessing"] = given;
  }
  return Sha256OfText(all.dump());
}

at::ScalarType ScaleDtypeOf(const Checkpoint& checkpoint) {
  const bool read_as_bf16 = checkpoint.config().dtype == at::kBFloat16;
  return ScaleDtypeFor(read_as_bf16 ? at::kBFloat16 : checkpoint.storage_dtype());
}

std::map<std::string, at::ScalarType> DenseDtypes(const Checkpoint& checkpoint, int block) {
  const std::string prefix = checkpoint.BlockPrefix(block);
  std::map<std::string, at::ScalarType> dtypes;
  const auto add = [&](const std::string& key) {
    if (checkpoint.Has(prefix + key)) dtypes[key] = checkpoint.Info(prefix + key).dtype;
  };
  for (const NormSpec& norm : checkpoint.architecture().norms) {
    add(norm.name + ".weight");
    add(norm.name + ".bias");
  }
  for (const LinearSpec& linear : checkpoint.architecture().linears) add(linear.name + ".bias");
  return dtypes;
}

}  // namespace quantry::engine
