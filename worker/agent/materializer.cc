#include "worker/agent/materializer.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>

#include "common/errors.h"
#include "google/protobuf/struct.pb.h"
#include "google/protobuf/util/json_util.h"
#include "worker/agent/local_source.h"

namespace quantry::agent {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMaxModelFiles = 10000;
constexpr const char* kIndex = "model.safetensors.index.json";
constexpr const char* kWhole = "model.safetensors";
// As the engine's. A larger index would take the agent's memory, which all jobs share.
constexpr std::int64_t kMaxIndexBytes = 64 << 20;

bool EndsWithAny(std::string_view text, std::initializer_list<std::string_view> endings) {
  return std::any_of(endings.begin(), endings.end(),
                     [&](std::string_view ending) { return text.ends_with(ending); });
}

// Collects the names of a model folder before anything is fetched.
class ModelListing {
 public:
  void Add(const std::string& path) {
    const ModelFile kind = ClassifyModelFile(path);
    if (kind == ModelFile::kWanted && path.ends_with(".safetensors")) safetensors_ = true;
    if (kind == ModelFile::kPickle && pickle_.empty()) pickle_ = path;
    if (path == "config.json") config_ = true;
    ++count_;
  }

  absl::Status Check(const std::string& source) const {
    if (count_ == 0) {
      return MakeError(Reason::kSourceMissing,
                       "model source " + source +
                           " holds no files; wanted config.json, "
                           "*.safetensors and tokenizer.json",
                       {{"source", source}});
    }
    if (!safetensors_ && !pickle_.empty()) {
      return MakeError(Reason::kCheckpointFormatRefused,
                       "model source " + source + " has no *.safetensors, only " + pickle_ +
                           "; pickled weights can run code and are refused. Convert them: load "
                           "the model with transformers and call "
                           "save_pretrained(folder, safe_serialization=True)",
                       {{"source", source}, {"file", pickle_}});
    }
    if (!safetensors_ || !config_) {
      return MakeError(Reason::kSourceMissing,
                       "model source " + source + " has no " +
                           (config_ ? "*.safetensors" : "config.json") +
                           "; wanted a folder in Hugging Face layout",
                       {{"source", source}});
    }
    return absl::OkStatus();
  }

 private:
  int count_ = 0;
  bool safetensors_ = false;
  bool config_ = false;
  std::string pickle_;
};

absl::Status BadName(const std::string& path, const absl::Status& why) {
  return MakeError(Reason::kInvalidSpec, "file name in the upload: " + std::string(why.message()),
                   {{"path", path}});
}

// The folder and the last part of "scheme://a/b/c?query".
std::pair<std::string, std::string> SplitUri(const std::string& uri) {
  const std::size_t query = std::min(uri.find('?'), uri.size());
  const std::size_t slash = uri.rfind('/', query == 0 ? 0 : query - 1);
  return {uri.substr(0, slash) + uri.substr(query), uri.substr(slash + 1, query - slash - 1)};
}

std::string ReadText(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// The files that a weight_map names; empty when `index` is none.
std::set<std::string> ShardsOf(const std::string& index) {
  std::set<std::string> shards;
  google::protobuf::Struct object;
  if (!google::protobuf::util::JsonStringToMessage(index, &object).ok()) return shards;
  const auto map = object.fields().find("weight_map");
  if (map == object.fields().end()) return shards;
  for (const auto& [tensor, shard] : map->second.struct_value().fields()) {
    shards.insert(shard.string_value());
  }
  return shards;
}

bool IsFileUri(std::string_view uri) { return uri.starts_with("file:") || uri.starts_with('/'); }

}  // namespace

ModelFile ClassifyModelFile(std::string_view path) {
  if (path.find('/') != std::string_view::npos) return ModelFile::kIgnored;
  if (EndsWithAny(path, {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})) {
    return ModelFile::kPickle;
  }
  if (EndsWithAny(path,
                  {".safetensors", ".json", ".txt", ".model", ".jinja", ".md", ".tiktoken"}) ||
      path == "LICENSE") {
    return ModelFile::kWanted;
  }
  return ModelFile::kIgnored;  // *.py above all
}

absl::StatusOr<std::vector<HubFile>> WantedHubFiles(const HubListing& listing,
                                                    const std::string& index) {
  std::set<std::string> shards = ShardsOf(index);
  std::set<std::string> listed;
  for (const HubFile& file : listing.files) listed.insert(file.path);
  if (shards.empty() && listed.contains(kWhole)) shards = {kWhole};
  for (const std::string& shard : shards) {
    if (listed.contains(shard)) continue;
    return MakeError(Reason::kSourceMissing,
                     listing.repo + ": its index names " + shard.substr(0, 200) +
                         ", which the repository does not have",
                     {{"repo", listing.repo}});
  }
  std::vector<HubFile> wanted;
  for (const HubFile& file : listing.files) {
    if (ClassifyModelFile(file.path) != ModelFile::kWanted) continue;
    if (file.path.ends_with(".safetensors") && !shards.empty() && !shards.contains(file.path)) {
      continue;
    }
    wanted.push_back(file);
  }
  return wanted;
}

struct Materializer::Context {
  const v1::Lease& lease;
  const AttemptDir& dir;
  const TransferCheck& check;
  std::vector<std::string> roots;
};

std::vector<std::string> Materializer::Roots(const v1::Lease& lease) const {
  std::vector<std::string> roots(lease.local_roots().begin(), lease.local_roots().end());
  roots.insert(roots.end(), local_roots_.begin(), local_roots_.end());
  return roots;
}

absl::StatusOr<std::string> Materializer::LocalModel(const Context& context,
                                                     std::string_view path) const {
  auto resolved = ResolveBelowRoots(path, context.roots);
  if (!resolved.ok()) return resolved;
  std::error_code error;
  const auto ill = [&] {
    return absl::UnavailableError(std::string(path) + ": " + error.message());
  };
  const fs::file_status found = fs::status(*resolved, error);
  if (found.type() == fs::file_type::none) return ill();
  if (!fs::is_directory(found)) {
    const bool file = fs::exists(found);
    return MakeError(Reason::kSourceMissing,
                     std::string(path) + (file ? " is a file" : ": " + error.message()) +
                         "; wanted the model's folder",
                     {{"path", std::string(path)}});
  }
  ModelListing listing;
  for (fs::directory_iterator it(*resolved, error), end; !error && it != end; it.increment(error)) {
    listing.Add(it->path().filename().native());
  }
  if (error) return ill();
  if (auto status = listing.Check(std::string(path)); !status.ok()) return status;
  return resolved;
}

absl::StatusOr<std::string> Materializer::RemoteModel(const Context& context,
                                                      const std::string& uri) const {
  if (IsFileUri(uri)) {
    auto path = LocalPathFromUri(uri);
    if (!path.ok()) return MakeError(Reason::kInvalidSpec, std::string(path.status().message()));
    return LocalModel(context, *path);
  }
  auto storage = OpenStorage(uri);
  if (!storage.ok()) return storage.status();
  auto files = (*storage)->ListFolder("");
  if (!files.ok()) return files.status();
  if (files->size() > kMaxModelFiles) {
    return MakeError(Reason::kInvalidSpec, "model source " + uri + " holds " +
                                               std::to_string(files->size()) +
                                               " files, at most 10000 are taken");
  }
  ModelListing listing;
  for (const StoredFile& file : *files) listing.Add(file.path);
  if (auto status = listing.Check(uri); !status.ok()) return status;
  for (const StoredFile& file : *files) {
    if (ClassifyModelFile(file.path) != ModelFile::kWanted) continue;
    auto moved =
        (*storage)->Download(file.path, context.dir.model() + "/" + file.path, context.check);
    if (!moved.ok()) return moved.status();
  }
  return context.dir.model();
}

absl::StatusOr<std::string> Materializer::HubModel(const Context& context, const std::string& uri,
                                                   std::string* note) const {
  const HubSource off({});
  const HubSource& hub = hub_ == nullptr ? off : *hub_;
  const auto listing = hub.List(uri, context.check);
  if (!listing.ok()) return listing.status();
  ModelListing names;
  for (const HubFile& file : listing->files) names.Add(file.path);
  if (auto status = names.Check(uri); !status.ok()) return status;
  *note = uri + " is commit " + listing->commit;
  if (auto status = HubFiles(context, *listing); !status.ok()) return status;
  return context.dir.model();
}

absl::Status Materializer::HubFiles(const Context& context, const HubListing& listing) const {
  const std::string folder = context.dir.model() + "/";
  std::error_code error;
  fs::create_directories(folder, error);
  std::string index;
  for (const HubFile& file : listing.files) {
    if (file.path != kIndex) continue;
    if (file.size_bytes > kMaxIndexBytes) {
      return MakeError(Reason::kResourceLimit,
                       listing.repo + ": wanted a " + kIndex + " of at most " +
                           std::to_string(kMaxIndexBytes) + " bytes, got " +
                           std::to_string(file.size_bytes),
                       {{"repo", listing.repo}});
    }
    auto status = hub_->Download(listing, file, folder + kIndex, context.check);
    if (!status.ok()) return status;
    index = ReadText(folder + kIndex);
  }
  const auto wanted = WantedHubFiles(listing, index);
  if (!wanted.ok()) return wanted.status();
  std::int64_t total = 0;
  for (const HubFile& file : *wanted) {
    total += file.size_bytes;
    if (total <= hub_->max_bytes()) continue;
    return MakeError(Reason::kResourceLimit,
                     listing.repo + ": wanted a checkpoint of at most " +
                         std::to_string(hub_->max_bytes()) +
                         " bytes (hub_max_bytes of the worker), got more",
                     {{"repo", listing.repo}});
  }
  const auto blobs = HubBlobs(*hub_, listing, cache_.root() + "/hub-parts");
  for (const HubFile& file : *wanted) {
    auto status =
        file.sha256.empty()
            ? hub_->Download(listing, file, folder + file.path, context.check)
            : cache_.Place(*blobs, file.sha256, file.size_bytes, folder + file.path, context.check);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> Materializer::BlobModel(const Context& context,
                                                    const v1::BlobSet& blobs) const {
  if (static_cast<std::size_t>(blobs.files_size()) > kMaxModelFiles) {
    return MakeError(Reason::kInvalidSpec, "the upload names " +
                                               std::to_string(blobs.files_size()) +
                                               " files, at most 10000 are taken");
  }
  ModelListing listing;
  std::set<std::string> names;
  for (const v1::BlobFile& file : blobs.files()) {
    if (auto status = CheckRelativePath(file.path()); !status.ok()) {
      return BadName(file.path(), status);
    }
    if (!names.insert(file.path()).second) {
      return MakeError(Reason::kInvalidSpec, "the upload names " + file.path() + " twice",
                       {{"path", file.path()}});
    }
    listing.Add(file.path());
  }
  if (auto status = listing.Check("(upload)"); !status.ok()) return status;
  auto storage = OpenStorage(context.lease.blob_uri());
  if (!storage.ok()) return storage.status();
  for (const v1::BlobFile& file : blobs.files()) {
    if (ClassifyModelFile(file.path()) != ModelFile::kWanted) continue;
    auto status = cache_.Place(**storage, file.sha256(), file.size_bytes(),
                               context.dir.model() + "/" + file.path(), context.check);
    if (!status.ok()) return status;
  }
  return context.dir.model();
}

absl::StatusOr<std::string> Materializer::Model(const Context& context, std::string* note) const {
  const v1::ModelSource& source = context.lease.spec().model();
  switch (source.kind_case()) {
    case v1::ModelSource::kLocalPath:
      return LocalModel(context, source.local_path());
    case v1::ModelSource::kUri:
      if (IsHubUri(source.uri())) return HubModel(context, source.uri(), note);
      return RemoteModel(context, source.uri());
    case v1::ModelSource::kBlobs:
      return BlobModel(context, source.blobs());
    case v1::ModelSource::KIND_NOT_SET:
      break;
  }
  return MakeError(Reason::kInvalidSpec, "the job names no model source this worker knows");
}

absl::StatusOr<std::string> Materializer::Text(const Context& context, const v1::TextSource& source,
                                               const std::string& target) const {
  switch (source.kind_case()) {
    case v1::TextSource::kLocalPath:
      return ResolveBelowRoots(source.local_path(), context.roots);
    case v1::TextSource::kBlob: {
      auto storage = OpenStorage(context.lease.blob_uri());
      if (!storage.ok()) return storage.status();
      auto status = cache_.Place(**storage, source.blob().sha256(), source.blob().size_bytes(),
                                 target, context.check);
      if (!status.ok()) return status;
      return target;
    }
    case v1::TextSource::kUri: {
      if (IsFileUri(source.uri())) {
        auto path = LocalPathFromUri(source.uri());
        if (!path.ok())
          return MakeError(Reason::kInvalidSpec, std::string(path.status().message()));
        return ResolveBelowRoots(*path, context.roots);
      }
      const auto [folder, name] = SplitUri(source.uri());
      auto storage = OpenStorage(folder);
      if (!storage.ok()) return storage.status();
      auto moved = (*storage)->Download(name, target, context.check);
      if (!moved.ok()) return moved.status();
      return target;
    }
    case v1::TextSource::KIND_NOT_SET:
      break;
  }
  return MakeError(Reason::kInvalidSpec, "a text of the job has no source this worker knows");
}

absl::StatusOr<JobInputs> Materializer::Materialize(const v1::Lease& lease, const AttemptDir& dir,
                                                    const TransferCheck& check) const {
  const Context context{lease, dir, check, Roots(lease)};
  JobInputs inputs;
  inputs.folders = context.roots;
  inputs.folders.push_back(dir.root);
  auto model = Model(context, &inputs.note);
  if (!model.ok()) return model.status();
  inputs.model_dir = *model;
  const v1::JobSpec& spec = lease.spec();
  if (spec.calibration().has_source()) {
    auto text = Text(context, spec.calibration().source(), dir.text() + "/calibration");
    if (!text.ok()) return text.status();
    inputs.calibration = *text;
  }
  if (spec.evaluation().has_source()) {
    auto text = Text(context, spec.evaluation().source(), dir.text() + "/evaluation");
    if (!text.ok()) return text.status();
    inputs.evaluation = *text;
  }
  if (spec.preprocessing().has_source()) {
    auto text = Text(context, spec.preprocessing().source(), dir.text() + "/preprocessing");
    if (!text.ok()) return text.status();
    inputs.preprocessing = *text;
  }
  return inputs;
}

}  // namespace quantry::agent
