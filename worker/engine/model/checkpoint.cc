#include "worker/engine/model/checkpoint.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "worker/engine/base/error.h"
#include "worker/engine/base/json.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/model/shards.h"

namespace quantry::engine {
namespace {

constexpr uint64_t kMaxConfigBytes = 1 << 20;

struct Expected {
  std::string name;
  std::vector<int64_t> shape;
  bool linear = false;
};

void ExpectNorm(const Architecture& row, const std::string& name, int64_t size,
                std::vector<Expected>* out) {
  out->push_back({name + ".weight", {size}});
  if (row.norm_kind == NormKind::kLayer) out->push_back({name + ".bias", {size}});
}

void ExpectBlock(const Architecture& row, const ModelConfig& config, const std::string& prefix,
                 std::vector<Expected>* out) {
  for (const NormSpec& norm : row.norms) {
    ExpectNorm(row, prefix + norm.name, SizeOf(config, norm.role), out);
  }
  for (const LinearSpec& linear : row.linears) {
    const LinearShape shape = ShapeOf(config, linear.role);
    out->push_back({prefix + linear.name + ".weight", {shape.out, shape.in}, true});
    if (HasBias(config, linear)) out->push_back({prefix + linear.name + ".bias", {shape.out}});
  }
}

// Digits become "N", so that a deep model names each kind of tensor once.
std::string Pattern(const std::string& name) {
  std::string pattern;
  for (const char c : name) {
    const bool digit = c >= '0' && c <= '9';
    if (digit && !pattern.empty() && pattern.back() == 'N') continue;
    pattern += digit ? 'N' : c;
  }
  return pattern;
}

std::vector<std::string> Patterns(const std::vector<std::string>& names) {
  std::set<std::string> patterns;
  for (const std::string& name : names) patterns.insert(Printable(Pattern(name), 120));
  return {patterns.begin(), patterns.end()};
}

// Unknown model_type: which of its tensors no known architecture has either.
[[noreturn]] void RefuseUnknownType(const EngineError& error, const std::string& dir,
                                    const std::string& stem) {
  std::set<std::string> known;
  for (const Architecture* row : Architectures()) {
    for (const LinearSpec& linear : row->linears) known.insert(linear.name);
    for (const NormSpec& norm : row->norms) known.insert(norm.name);
    known.insert({row->head, row->final_norm, row->embedding, row->position_embedding});
  }
  std::vector<std::string> strange;
  for (const auto& file : OpenShards(dir, stem)) {
    for (const TensorInfo& tensor : file->tensors()) {
      const bool familiar = std::any_of(known.begin(), known.end(), [&](const std::string& name) {
        return !name.empty() && tensor.name.find(name) != std::string::npos;
      });
      if (!familiar) strange.push_back(tensor.name);
    }
  }
  const std::string names = Join(Patterns(strange), 12);
  throw UserError(error.reason,
                  StrCat(error.what(),
                         names.empty() ? ". All of its tensors have familiar names"
                                       : ". Tensors it has and those do not: ",
                         names),
                  {{"model_type", error.metadata.at("model_type")}, {"tensors", names}});
}

bool IsFloating(at::ScalarType dtype) {
  return dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16 ||
         dtype == at::kDouble;
}

void CheckTensor(const Expected& wanted, const TensorInfo& got, const std::string& path) {
  if (got.shape != wanted.shape) {
    throw UserError(
        "INVALID_CHECKPOINT",
        StrCat("tensor '", wanted.name, "' in ", path, " has shape [", Join(got.shape),
               "], config.json implies [", Join(wanted.shape),
               "]: config.json and the weights belong to different models"),
        {{"tensor", wanted.name}, {"wanted", Join(wanted.shape)}, {"got", Join(got.shape)}});
  }
  if (IsFloating(got.dtype)) return;
  throw UserError(
      "INVALID_CHECKPOINT",
      StrCat("tensor '", wanted.name, "' in ", path, " has dtype ", SafetensorsDtypeName(got.dtype),
             ", a dense checkpoint in F32, F16, BF16 or F64 is wanted"),
      {{"tensor", wanted.name}});
}

// Whether two matrices hold the same numbers, in the coarser of their dtypes.
bool SameNumbers(const at::Tensor& a, const at::Tensor& b) {
  constexpr int64_t kRows = 4096;  // converted at once
  if (a.sizes() != b.sizes()) return false;
  const at::ScalarType coarse =
      a.element_size() < b.element_size() ? a.scalar_type() : b.scalar_type();
  for (int64_t row = 0; row < a.size(0); row += kRows) {
    const int64_t end = std::min(row + kRows, a.size(0));
    const at::Tensor x = a.slice(0, row, end).to(coarse).to(at::kFloat);
    const at::Tensor y = b.slice(0, row, end).to(coarse).to(at::kFloat);
    if (!x.eq(y).logical_or_(x.isnan().logical_and(y.isnan())).all().item<bool>()) return false;
  }
  return true;
}

// A head stored beside the embedding that it is tied to is the same matrix, or
// was trained apart from it: then leaving it out makes another model.
void CheckTiedHead(const Checkpoint& checkpoint) {
  const std::string& head = checkpoint.architecture().head;
  const std::string& embedding = checkpoint.EmbeddingName();
  const bool tied = checkpoint.config().tie_word_embeddings && embedding != head;
  if (!tied || !checkpoint.Has(head)) return;
  const bool same = SameNumbers(checkpoint.View(embedding), checkpoint.View(head));
  checkpoint.Release(embedding);
  checkpoint.Release(head);
  if (same) return;
  throw UserError(
      "INVALID_CHECKPOINT",
      StrCat("config.json ties the head to ", embedding, " (tie_word_embeddings), but ", head,
             " is stored too and differs. Set tie_word_embeddings to false to keep it, "
             "or remove it from the checkpoint"),
      {{"tensor", head}});
}

}  // namespace

std::shared_ptr<const Checkpoint> Checkpoint::Open(const std::string& dir) {
  std::shared_ptr<Checkpoint> checkpoint(new Checkpoint());
  checkpoint->dir_ = dir;
  checkpoint->Read(ReadConfigText(dir, kMaxConfigBytes), "model");
  return checkpoint;
}

std::shared_ptr<const Checkpoint> Checkpoint::OpenPacked(const std::string& dir,
                                                         const std::string& stem,
                                                         std::set<std::string> modules) {
  const std::string text = ReadConfigText(dir, kMaxConfigBytes);
  ParseJson(text, "config.json", "INVALID_CHECKPOINT");  // bounds its depth
  nlohmann::ordered_json config = nlohmann::ordered_json::parse(text);
  if (config.is_object()) config.erase("quantization_config");
  std::shared_ptr<Checkpoint> checkpoint(new Checkpoint());
  checkpoint->dir_ = dir;
  checkpoint->packed_ = std::move(modules);
  checkpoint->Read(config.dump(), stem);
  return checkpoint;
}

void Checkpoint::Read(const std::string& config, const std::string& stem) {
  try {
    config_ = ParseModelConfig(config, &architecture_);
  } catch (const EngineError& error) {
    if (error.metadata.count("model_type") == 0) throw;
    RefuseUnknownType(error, dir_, stem);
  }
  MapTensors(stem);
  ChoosePrefix();
  CheckTensors();
}

bool Checkpoint::IsPacked(const std::string& tensor) const {
  return packed_.count(tensor.substr(0, tensor.rfind('.'))) != 0;
}

void Checkpoint::MapTensors(const std::string& stem) {
  files_ = OpenShards(dir_, stem);
  for (const auto& file : files_) {
    for (const TensorInfo& info : file->tensors()) {
      const auto [it, is_new] = tensors_.emplace(info.name, Entry{file, &info});
      if (is_new) continue;
      throw UserError("INVALID_CHECKPOINT",
                      StrCat("tensor '", Printable(info.name), "' is both in ",
                             it->second.file->path(), " and in ", file->path()),
                      {{"tensor", info.name}});
    }
  }
}

void Checkpoint::ChoosePrefix() {
  prefix_ = architecture_->prefixes.front();
  for (const std::string& prefix : architecture_->prefixes) {
    if (!Has(prefix + architecture_->final_norm + ".weight")) continue;
    prefix_ = prefix;
    break;
  }
  // A tied matrix may be stored under either of its two names.
  embedding_name_ = prefix_ + architecture_->embedding;
  const bool only_head = !Has(embedding_name_) && Has(architecture_->head);
  if (config_.tie_word_embeddings && only_head) embedding_name_ = architecture_->head;
}

void Checkpoint::CheckTensors() {
  std::vector<Expected> expected = {{embedding_name_, {config_.vocab_size, config_.hidden_size}}};
  if (architecture_->positions == PositionKind::kLearned) {
    expected.push_back(
        {PositionEmbeddingName(),
         {config_.max_positions + architecture_->position_offset, config_.hidden_size}});
  }
  for (int i = 0; i < config_.num_layers; ++i) {
    // Stops at the first block that is absent: num_layers is only a number.
    ExpectBlock(*architecture_, config_, BlockPrefix(i), &expected);
    if (!Has(expected.back().name) && !IsPacked(expected.back().name)) break;
  }
  ExpectNorm(*architecture_, FinalNormName(), config_.hidden_size, &expected);
  if (!config_.tie_word_embeddings) {
    expected.push_back({HeadName(), {config_.vocab_size, config_.hidden_size}});
  }
  std::vector<std::string> missing;
  std::map<at::ScalarType, int> dtypes;
  for (const Expected& wanted : expected) {
    if (wanted.linear && IsPacked(wanted.name)) continue;
    const auto it = tensors_.find(wanted.name);
    if (it == tensors_.end()) {
      missing.push_back(wanted.name);
      continue;
    }
    CheckTensor(wanted, *it->second.info, it->second.file->path());
    names_.push_back(wanted.name);
    if (wanted.linear && ++dtypes[it->second.info->dtype] > dtypes[storage_dtype_]) {
      storage_dtype_ = it->second.info->dtype;
    }
  }
  if (!missing.empty()) {
    throw UserError("INVALID_CHECKPOINT",
                    StrCat("the checkpoint lacks ", missing.size(), " tensors a ",
                           architecture_->name, " model of this config.json has: ", Join(missing),
                           ". Is a shard missing, or num_hidden_layers or tie_word_embeddings "
                           "wrong?"),
                    {{"tensors", Join(missing)}});
  }
  CheckTiedHead(*this);
  RefuseSurplus();
}

void Checkpoint::RefuseSurplus() const {
  const std::set<std::string> used(names_.begin(), names_.end());
  std::vector<std::string> surplus;
  for (const auto& [name, entry] : tensors_) {
    const auto& ignored = architecture_->ignored_suffixes;
    const bool meaningless =
        (config_.tie_word_embeddings && name == architecture_->head) ||
        std::any_of(ignored.begin(), ignored.end(),
                    [&name = name](const std::string& suffix) { return name.ends_with(suffix); });
    if (used.count(name) == 0 && !meaningless && !IsPacked(name)) surplus.push_back(name);
  }
  if (surplus.empty()) return;
  const std::string names = Join(Patterns(surplus), 12);
  throw UserError(
      "INVALID_CHECKPOINT",
      StrCat("the checkpoint has ", surplus.size(), " tensors which a ", architecture_->name,
             " model of this config.json does not know, so its output would be wrong: ", names),
      {{"tensors", names}});
}

std::string Checkpoint::HeadName() const {
  return config_.tie_word_embeddings ? embedding_name_ : architecture_->head;
}
std::string Checkpoint::FinalNormName() const { return prefix_ + architecture_->final_norm; }
std::string Checkpoint::BlockPrefix(int block) const {
  return StrCat(prefix_, architecture_->block_prefix, block, ".");
}
std::string Checkpoint::PositionEmbeddingName() const {
  return prefix_ + architecture_->position_embedding;
}

const Checkpoint::Entry& Checkpoint::Find(const std::string& name) const {
  const auto it = tensors_.find(name);
  if (it == tensors_.end()) {
    throw UserError("INVALID_CHECKPOINT", StrCat("the checkpoint has no tensor '", name, "'"),
                    {{"tensor", name}});
  }
  return it->second;
}

const TensorInfo& Checkpoint::Info(const std::string& name) const { return *Find(name).info; }
at::Tensor Checkpoint::LoadFloat(const std::string& name) const {
  const Entry& entry = Find(name);
  return entry.file->LoadFloat(*entry.info);
}
void Checkpoint::CheckFinite(const OnBytes& on_bytes) const {
  for (const std::string& name : names_) {
    const Entry& entry = Find(name);
    entry.file->CheckFinite(*entry.info);
    if (on_bytes) on_bytes(entry.info->end - entry.info->begin);
  }
}
at::Tensor Checkpoint::View(const std::string& name) const {
  const Entry& entry = Find(name);
  return entry.file->View(*entry.info);
}
void Checkpoint::Release(const std::string& name) const {
  const Entry& entry = Find(name);
  entry.file->Release(*entry.info);
}

int64_t Checkpoint::parameters() const {
  int64_t total = 0;
  for (const std::string& name : names_) total += Info(name).numel();
  return total;
}

std::vector<std::string> Checkpoint::files() const {
  std::vector<std::string> paths;
  for (const auto& file : files_) paths.push_back(file->path());
  std::sort(paths.begin(), paths.end());
  return paths;
}

}  // namespace quantry::engine
