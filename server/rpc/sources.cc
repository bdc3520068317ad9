#include "server/rpc/sources.h"

#include <filesystem>
#include <map>
#include <memory>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/counted_text.h"
#include "common/engine_job.h"
#include "common/errors.h"
#include "common/ids.h"
#include "common/storage.h"
#include "common/utf8_prefix.h"
#include "google/protobuf/any.pb.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "server/artifacts/file_ops.h"

namespace quantry::server {
namespace {

namespace fs = std::filesystem;

// Named in one answer; the client asks FindMissingBlobs for the rest.
constexpr size_t kMaxNamedBlobs = 20;
constexpr std::string_view kFileScheme = "file://";

struct Named {
  std::string field;
  std::string text;
};

// What the spec names outside its uploads.
struct Outside {
  std::vector<Named> paths;  // local_path and file: URIs
  std::vector<Named> uris;   // all others
};

template <typename Source>
void AddOutside(const std::string& field, const Source& source, Outside* out) {
  if (source.has_local_path()) out->paths.push_back({field + ".local_path", source.local_path()});
  if (!source.has_uri()) return;
  const std::string& uri = source.uri();
  if (uri.starts_with(kFileScheme)) {
    out->paths.push_back({field + ".uri", uri.substr(kFileScheme.size())});
  } else {
    out->uris.push_back({field + ".uri", uri});
  }
}

Outside OutsideOf(const v1::JobSpec& spec) {
  Outside outside;
  AddOutside("model", spec.model(), &outside);
  AddOutside("calibration.source", spec.calibration().source(), &outside);
  AddOutside("evaluation.source", spec.evaluation().source(), &outside);
  AddOutside("preprocessing.source", spec.preprocessing().source(), &outside);
  return outside;
}

absl::Status ForbiddenUri(const Named& named, const std::string& tenant,
                          const std::string& allowed) {
  constexpr size_t kShown = 500;
  return MakeError(Reason::kSourceForbidden,
                   absl::StrCat("quantization_job.spec.", named.field,
                                ": wanted a URI below one that ", FormatTenantName(tenant),
                                " may read (", allowed, "), with that one's query and ",
                                "without %-escapes, got '", Utf8Prefix(named.text, kShown),
                                "'; upload the files instead, or ask the operator for it (quantryd "
                                "--tenant-sources-file)"),
                   {{"field", named.field}, {"uri", Utf8Prefix(named.text, kShown)}});
}

std::vector<v1::BlobFile> BlobsOf(const v1::JobSpec& spec) {
  std::vector<v1::BlobFile> blobs(spec.model().blobs().files().begin(),
                                  spec.model().blobs().files().end());
  for (const v1::TextSource* text : {&spec.calibration().source(), &spec.evaluation().source(),
                                     &spec.preprocessing().source()}) {
    if (text->has_blob()) blobs.push_back(text->blob());
  }
  return blobs;
}

absl::Status MissingError(const std::vector<v1::BlobFile>& missing) {
  ErrorDetails details;
  for (const v1::BlobFile& blob : missing) {
    if (details.preconditions.size() == kMaxNamedBlobs) break;
    details.preconditions.push_back({"MISSING", blob.sha256(), Utf8Prefix(blob.path(), 100)});
  }
  details.metadata = {{"missing", absl::StrCat(missing.size())}};
  return MakeDetailedError(
      Reason::kSourceMissing,
      absl::StrCat(missing.size(), " blobs of the spec are not on the server, the first is ",
                   missing[0].sha256(), " (", Utf8Prefix(missing[0].path(), 100),
                   "); upload them with UploadBlob, then try again"),
      std::move(details));
}

absl::Status NoQuoteFor(const std::string& field, const std::string& what) {
  return MakeError(Reason::kUnimplementedRpc,
                   absl::StrCat(field, ": quotes for ", what,
                                " are not part of this version; "
                                "submit the job, or quote a local copy"));
}

absl::Status NoQuoteForUri(const std::string& field) { return NoQuoteFor(field, "object URIs"); }

// What a quote reads of a file of a model: a tokenizer and all that is JSON are small.
BlobPart PartOf(const v1::BlobFile& file) {
  constexpr std::int64_t kMostBytes = std::int64_t{64} << 20;
  if (file.path().ends_with(".safetensors")) return BlobPart::kHead;
  return file.size_bytes() <= kMostBytes ? BlobPart::kWhole : BlobPart::kSize;
}

// Places a tenant's uploads for a quote: each once, its other names are links to the first.
class Placer {
 public:
  Placer(BlobStore* blobs, std::string tenant, std::int64_t most, const Awaited& awaited)
      : blobs_(blobs), tenant_(std::move(tenant)), most_(most), awaited_(awaited) {}

  absl::Status Place(const v1::BlobFile& blob, BlobPart part, const std::string& path) {
    if (absl::Status status = awaited_(); !status.ok()) return status;
    if (absl::Status made = MakeFolders(fs::path(path).parent_path().string()); !made.ok()) {
      return made;
    }
    const auto [first, is_new] = placed_.try_emplace({blob.sha256(), part}, path);
    if (!is_new) return Link(first->second, path);
    const auto bytes =
        blobs_->Place(tenant_, {blob.sha256(), blob.size_bytes()}, part, left_, path);
    if (HasReason(bytes.status(), Reason::kResourceLimit)) {
      return NoQuoteFor(blob.path(),
                        absl::StrCat("uploads of which more than ", most_, " bytes would be read"));
    }
    if (!bytes.ok()) return bytes.status();
    left_ -= *bytes;
    return absl::OkStatus();
  }

 private:
  static absl::Status Link(const std::string& first, const std::string& path) {
    std::error_code error;
    fs::create_hard_link(first, path, error);
    return error ? DiskError("link", path, error.value()) : absl::OkStatus();
  }

  BlobStore* const blobs_;
  const std::string tenant_;
  const std::int64_t most_;
  const Awaited& awaited_;
  std::map<std::pair<std::string, BlobPart>, std::string> placed_;
  std::int64_t left_ = most_;
};

// Where a model lies on this machine; its uploads are placed in `uploaded`.
absl::StatusOr<std::string> DirOf(const v1::ModelSource& model, const std::string& uploaded) {
  if (model.has_blobs()) return uploaded;
  if (!model.has_uri()) return model.local_path();
  if (!model.uri().starts_with(kFileScheme)) return NoQuoteForUri("model.uri");
  return model.uri().substr(kFileScheme.size());
}

}  // namespace

bool HasUploads(const v1::JobSpec& spec) { return !BlobsOf(spec).empty(); }

absl::Status Sources::Check(const std::string& tenant, const v1::JobSpec& spec,
                            const Awaited& awaited) const {
  const Outside outside = OutsideOf(spec);
  for (const Named& named : outside.uris) {
    if (allowed_->MayRead(tenant, named.text)) continue;
    return ForbiddenUri(named, tenant, allowed_->PrefixesOf(tenant));
  }
  for (const Named& named : outside.paths) {
    const absl::Status status = allowed_->RootsOf(tenant).Resolve(named.text).status();
    if (status.ok()) continue;
    if (absl::IsUnavailable(status)) {
      return MakeError(Reason::kStorageError, std::string(status.message()));
    }
    const bool missing = absl::IsNotFound(status);
    return MakeDetailedError(
        missing ? Reason::kSourceMissing : Reason::kSourceForbidden,
        absl::StrCat("quantization_job.spec.", named.field, ": ", std::string(status.message()),
                     missing ? ""
                             : "; upload the files instead, or ask the operator for a root "
                               "(quantryd --local-roots)"),
        {.metadata = {{"field", named.field}, {"path", Utf8Prefix(named.text, 500)}}});
  }
  const std::vector<v1::BlobFile> files = BlobsOf(spec);
  std::vector<BlobId> blobs;
  for (const v1::BlobFile& file : files) blobs.push_back({file.sha256(), file.size_bytes()});
  const auto found = blobs_->FindAll(tenant, blobs, awaited);
  if (!found.ok()) return found.status();
  std::vector<v1::BlobFile> missing;
  for (size_t i = 0; i < files.size(); ++i) {
    if (!(*found)[i].complete) missing.push_back(files[i]);
  }
  return missing.empty() ? absl::OkStatus() : MissingError(missing);
}

Sources::LocalJob::~LocalJob() {
  std::error_code ignored;
  fs::remove_all(folder_, ignored);
}

std::string Sources::LocalJob::WithGivenNames(const std::string& words) const {
  return absl::StrReplaceAll(words, names);
}

absl::Status Sources::LocalJob::WithGivenNames(const absl::Status& status) const {
  google::rpc::Status named = ToRpcStatus(status);
  named.set_message(WithGivenNames(named.message()));
  for (google::protobuf::Any& detail : *named.mutable_details()) {
    google::rpc::ErrorInfo info;
    if (!detail.UnpackTo(&info)) continue;
    for (auto& [key, value] : *info.mutable_metadata()) value = WithGivenNames(value);
    detail.PackFrom(info);
  }
  return FromRpcStatus(named);
}

absl::StatusOr<std::unique_ptr<Sources::LocalJob>> Sources::Materialise(
    const std::string& tenant, const v1::JobSpec& spec, const Awaited& awaited) const {
  const std::string folder = absl::StrCat(scratch_dir_, "/quote-", NewUuid4());
  if (absl::Status status = MakeFolders(folder); !status.ok()) return status;
  auto local = std::make_unique<LocalJob>(folder);
  local->folders = RootsOf(tenant);
  local->folders.push_back(folder);
  // Uploads kept on this machine are linked.
  if (auto blobs = LocalPathFromUri(blobs_->Uri(tenant)); blobs.ok()) {
    local->folders.push_back(*std::move(blobs));
  }
  Placer placer(blobs_, tenant, most_placed_bytes_, awaited);
  const auto text_path = [&](const v1::TextSource& text, const std::string& name,
                             v1::EngineText* out) -> absl::Status {
    if (text.has_local_path()) out->set_path(text.local_path());
    if (text.has_blob()) {
      out->set_path(absl::StrCat(folder, "/", name));
      local->names.emplace_back(out->path(), text.blob().path());
      const bool counted = text.blob().size_bytes() <= kMostCountedTextBytes;
      return placer.Place(text.blob(), counted ? BlobPart::kWhole : BlobPart::kSize, out->path());
    }
    if (!text.has_uri()) return absl::OkStatus();
    if (text.uri().rfind(kFileScheme, 0) != 0) return NoQuoteForUri(name);
    out->set_path(text.uri().substr(kFileScheme.size()));
    return absl::OkStatus();
  };
  v1::EngineJob& job = local->job;
  job = EngineJobOf(spec);
  auto model_dir = DirOf(spec.model(), folder + "/model");
  if (!model_dir.ok()) return model_dir.status();
  job.set_model_dir(*std::move(model_dir));
  if (spec.model().has_blobs()) {
    local->names.emplace_back(job.model_dir() + "/", "");
    local->names.emplace_back(job.model_dir(), "the model");
  }
  for (const v1::BlobFile& blob : spec.model().blobs().files()) {
    absl::Status status =
        placer.Place(blob, PartOf(blob), absl::StrCat(job.model_dir(), "/", blob.path()));
    if (!status.ok()) return status;
  }
  if (job.has_calibration()) {
    absl::Status status = text_path(spec.calibration().source(), "calibration.source.uri",
                                    job.mutable_calibration()->mutable_text());
    if (!status.ok()) return status;
  }
  if (job.has_evaluation()) {
    absl::Status status = text_path(spec.evaluation().source(), "evaluation.source.uri",
                                    job.mutable_evaluation()->mutable_text());
    if (!status.ok()) return status;
  }
  if (job.has_preprocessing()) {
    absl::Status status = text_path(spec.preprocessing().source(), "preprocessing.source.uri",
                                    job.mutable_preprocessing()->mutable_text());
    if (!status.ok()) return status;
  }
  job.set_output_dir(folder + "/output");
  job.set_checkpoint_dir(folder + "/checkpoints");
  local->names.emplace_back(folder, "the job");  // what else lies there
  return local;
}

}  // namespace quantry::server
