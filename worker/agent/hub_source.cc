#include "worker/agent/hub_source.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <sys/file.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <utility>

#include "common/digest.h"
#include "common/errors.h"
#include "common/unique_fd.h"
#include "google/protobuf/struct.pb.h"
#include "google/protobuf/util/json_util.h"
#include "worker/agent/file_check.h"

namespace quantry::agent {
namespace {

namespace fs = std::filesystem;
using google::protobuf::Struct;
using google::protobuf::Value;

constexpr std::int64_t kMaxListingBytes = 32 << 20;
constexpr int kMaxHubFiles = 10000;
constexpr std::size_t kGitDigits = 40;
// Files that are not LFS are small; larger ones are checked by size alone.
constexpr std::int64_t kMaxGitBytes = 64 << 20;

bool IsHex(const std::string& text, std::size_t digits) {
  return text.size() == digits && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

// All but unreserved characters and, where it separates, "/".
std::string Escape(const std::string& text, bool keep_slashes) {
  static constexpr char kDigits[] = "0123456789ABCDEF";
  std::string escaped;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (std::isalnum(byte) != 0 || c == '-' || c == '.' || c == '_' || c == '~' ||
        (c == '/' && keep_slashes)) {
      escaped.push_back(c);
    } else {
      escaped += {'%', kDigits[byte >> 4], kDigits[byte & 15]};
    }
  }
  return escaped;
}

const Value& Field(const Struct& object, const std::string& name) {
  const auto found = object.fields().find(name);
  return found == object.fields().end() ? Value::default_instance() : found->second;
}

std::string Text(const Struct& object, const std::string& name) {
  return Field(object, name).string_value();
}

// JSON numbers are doubles; sizes are exact up to 2^53. -1 when there is none.
std::int64_t Size(const Struct& object, const std::string& name) {
  constexpr double kExact = 9007199254740992.0;
  const Value& field = Field(object, name);
  const double value = field.has_number_value() ? field.number_value() : -1;
  return value >= 0 && value <= kExact ? static_cast<std::int64_t>(value) : -1;
}

absl::Status BadListing(const std::string& uri, const std::string& what) {
  return MakeError(Reason::kStorageError, uri + ": the hub's listing has " + what, {{"uri", uri}});
}

absl::StatusOr<HubFile> FileOf(const std::string& uri, const Struct& row) {
  HubFile file;
  file.path = Text(row, "rfilename");
  if (!CheckRelativePath(file.path).ok()) return BadListing(uri, "a file name that leads outside");
  file.size_bytes = Size(row, "size");
  file.oid = Text(row, "blobId");
  if (!IsHex(file.oid, kGitDigits)) file.oid.clear();
  const Value& lfs = Field(row, "lfs");
  if (lfs.has_struct_value()) {
    file.sha256 = Text(lfs.struct_value(), "sha256");
    file.size_bytes = Size(lfs.struct_value(), "size");
    file.oid.clear();  // of the pointer
    if (!IsSha256Hex(file.sha256)) return BadListing(uri, "an LFS file without sha256");
  }
  if (file.size_bytes < 0) return BadListing(uri, "a file without a size (asked for ?blobs=true)");
  return file;
}

absl::StatusOr<HubListing> ParseListing(const std::string& uri, const std::string& repo,
                                        const std::string& json) {
  Struct object;
  if (!google::protobuf::util::JsonStringToMessage(json, &object).ok()) {
    return BadListing(uri, "no JSON object");
  }
  HubListing listing{.repo = repo, .commit = Text(object, "sha"), .files = {}};
  if (!IsHex(listing.commit, kGitDigits)) return BadListing(uri, "no commit");
  const auto& rows = Field(object, "siblings").list_value().values();
  if (rows.size() > kMaxHubFiles) return BadListing(uri, "more than 10000 files");
  for (const Value& row : rows) {
    auto file = FileOf(uri, row.struct_value());
    if (!file.ok()) return file.status();
    listing.files.push_back(*std::move(file));
  }
  return listing;
}

// What `git hash-object` says of the file.
std::string GitId(const std::string& path, std::int64_t size) {
  std::ifstream in(path, std::ios::binary);
  std::string content = "blob " + std::to_string(size) + '\0';
  content.append(std::istreambuf_iterator<char>(in), {});
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned int bytes = 0;
  EVP_Digest(content.data(), content.size(), digest.data(), &bytes, EVP_sha1(), nullptr);
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string hex;
  for (unsigned int i = 0; i < bytes; ++i)
    hex += {kDigits[digest[i] >> 4], kDigits[digest[i] & 15]};
  return hex;
}

// An error only when `check` wants an end.
absl::StatusOr<bool> IsWhatTheHubLists(const HubFile& file, const std::string& path,
                                       const TransferCheck& check) {
  if (!file.sha256.empty()) return HasSha256(path, file.sha256, check);
  return file.oid.empty() || file.size_bytes > kMaxGitBytes ||
         GitId(path, file.size_bytes) == file.oid;
}

absl::Status NotSupported() { return absl::UnimplementedError("a hub is only read"); }

class Blobs : public Storage {
 public:
  Blobs(const HubSource& hub, const HubListing& listing, std::string part_dir)
      : hub_(hub), listing_(listing), part_dir_(std::move(part_dir)) {}

  absl::StatusOr<Transferred> Download(std::string_view path, const std::string& local_file,
                                       const TransferCheck& check) override {
    for (const HubFile& file : listing_.files) {
      if (file.sha256 == path) return Fetch(file, local_file, check);
    }
    return absl::NotFoundError("no LFS file of the repository has this sha256");
  }

  absl::StatusOr<std::string> Read(std::string_view, std::int64_t) override {
    return NotSupported();
  }
  absl::StatusOr<std::unique_ptr<StoredReader>> Open(std::string_view) override {
    return NotSupported();
  }
  absl::Status Write(std::string_view, std::string_view) override { return NotSupported(); }
  absl::StatusOr<Transferred> Upload(const std::string&, std::string_view,
                                     const TransferCheck&) override {
    return NotSupported();
  }
  absl::StatusOr<std::optional<StoredFile>> Stat(std::string_view) override {
    return NotSupported();
  }
  absl::StatusOr<std::vector<StoredFile>> List(std::string_view) override { return NotSupported(); }
  absl::Status Delete(std::string_view) override { return NotSupported(); }
  absl::Status DeleteTree(std::string_view) override { return NotSupported(); }

 private:
  // Another slot may be fetching the same file: the part is the first one's.
  absl::StatusOr<Transferred> Fetch(const HubFile& file, const std::string& local_file,
                                    const TransferCheck& check) {
    std::error_code error;
    fs::create_directories(part_dir_, error);
    fs::create_directories(fs::path(local_file).parent_path(), error);
    const std::string part = part_dir_ + "/" + file.sha256;
    const UniqueFd lock(open(part.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    const bool ours = lock.ok() && flock(lock.get(), LOCK_EX | LOCK_NB) == 0;
    const std::string& target = ours ? part : local_file;
    if (absl::Status status = hub_.Download(listing_, file, target, check); !status.ok()) {
      return status;
    }
    if (ours) fs::rename(part, local_file, error);
    if (error) {
      return MakeError(Reason::kStorageError, "rename " + part + ": " + error.message());
    }
    return Transferred{.size_bytes = file.size_bytes, .sha256 = file.sha256};
  }

  const HubSource& hub_;
  const HubListing& listing_;
  const std::string part_dir_;
};

}  // namespace

absl::Status HubSource::Check(const HubOptions& options) {
  const std::string& endpoint = options.fetch.endpoint;
  if (endpoint.empty()) return absl::OkStatus();
  const bool https = endpoint.rfind("https://", 0) == 0;
  const bool loopback = endpoint.rfind("http://127.", 0) == 0 ||
                        endpoint.rfind("http://localhost", 0) == 0 ||
                        endpoint.rfind("http://[::1]", 0) == 0;
  if (!https && endpoint.rfind("http://", 0) != 0) {
    return MakeError(Reason::kInvalidConfig,
                     "hub_endpoint: wanted https://HOST or http://HOST, got " + endpoint,
                     {{"field", "hub_endpoint"}});
  }
  if (https || loopback || options.fetch.token_file.empty()) return absl::OkStatus();
  return MakeError(Reason::kInvalidConfig,
                   "hub_token_file: wanted an endpoint with https, got " + endpoint +
                       ": anybody on the way could read the token",
                   {{"field", "hub_token_file"}});
}

absl::StatusOr<HubListing> HubSource::List(const std::string& uri,
                                           const TransferCheck& check) const {
  const auto parsed = ParseHubUri(uri);
  if (!parsed.ok()) {
    return MakeError(Reason::kInvalidSpec, std::string(parsed.status().message()), {{"uri", uri}});
  }
  if (options_.fetch.endpoint.empty()) {
    return MakeError(Reason::kSourceForbidden,
                     uri +
                         ": this worker fetches nothing from model hubs; the operator turns it "
                         "on with --hub-endpoint, or upload the model",
                     {{"uri", uri}});
  }
  const auto json = fetcher_.Get(options_.fetch.endpoint + "/api/models/" + parsed->repo +
                                     "/revision/" + Escape(parsed->revision, false) + "?blobs=true",
                                 kMaxListingBytes, check);
  if (!json.ok()) return json.status();
  return ParseListing(uri, parsed->repo, *json);
}

absl::Status HubSource::Download(const HubListing& listing, const HubFile& file,
                                 const std::string& target, const TransferCheck& check) const {
  const std::string url = options_.fetch.endpoint + "/" + listing.repo + "/resolve/" +
                          listing.commit + "/" + Escape(file.path, true);
  for (int tries = 1;; ++tries) {
    absl::Status status = fetcher_.Download(url, target, file.size_bytes, check);
    if (!status.ok()) return status;
    const auto right = IsWhatTheHubLists(file, target, check);
    if (!right.ok()) return right.status();
    if (*right) return absl::OkStatus();
    std::error_code ignored;
    fs::resize_file(target, 0, ignored);
    if (tries < 2) continue;
    return MakeError(Reason::kArtifactCorrupt,
                     file.path + " of " + listing.repo + " is not what the hub lists: its " +
                         (file.sha256.empty() ? "git id" : "sha256") + " is another",
                     {{"path", file.path}, {"repo", listing.repo}, {"commit", listing.commit}});
  }
}

std::unique_ptr<Storage> HubBlobs(const HubSource& hub, const HubListing& listing,
                                  std::string part_dir) {
  return std::make_unique<Blobs>(hub, listing, std::move(part_dir));
}

}  // namespace quantry::agent
