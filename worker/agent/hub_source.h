#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/hub_uri.h"
#include "common/storage.h"
#include "worker/agent/http_fetcher.h"

namespace quantry::agent {

struct HubOptions {
  FetchOptions fetch;                              // endpoint "": hf:// sources are refused
  std::int64_t max_bytes = std::int64_t{1} << 40;  // of one checkpoint
};

// One file of a repository as the hub lists it.
struct HubFile {
  std::string path;
  std::int64_t size_bytes = 0;
  std::string sha256 = {};  // of a file kept as LFS; "" for others
  std::string oid = {};     // git's id of a file that is not; "" when the hub does not say
};

// A repository at one commit.
struct HubListing {
  std::string repo;
  std::string commit;  // 40 hex digits
  std::vector<HubFile> files;
};

// A model hub that speaks the Hugging Face HTTP API. Off unless an operator
// names its endpoint. Thread-safe.
//
// Errors: SOURCE_FORBIDDEN when it is off or wants a token, else HttpFetcher's.
class HubSource {
 public:
  // What `options` must be. INVALID_CONFIG: no http(s) URL, a token that would
  // travel without TLS to another machine.
  static absl::Status Check(const HubOptions& options);

  explicit HubSource(HubOptions options) : options_(std::move(options)), fetcher_(options_.fetch) {}

  // The files of `uri` at the commit its revision stands for now.
  absl::StatusOr<HubListing> List(const std::string& uri, const TransferCheck& check) const;

  // Into `target`, going on after what it holds. Checked against the listing's
  // size and, where it has one, sha256 or git id; another content is fetched
  // once more, then it is ARTIFACT_CORRUPT.
  absl::Status Download(const HubListing& listing, const HubFile& file, const std::string& target,
                        const TransferCheck& check) const;

  std::int64_t max_bytes() const { return options_.max_bytes; }

 private:
  const HubOptions options_;
  const HttpFetcher fetcher_;
};

// The LFS files of a listing as objects named by their sha256, so that a cache
// can fetch them (Download only). `part_dir` keeps what an interrupted transfer
// brought; everything passed in outlives it.
std::unique_ptr<Storage> HubBlobs(const HubSource& hub, const HubListing& listing,
                                  std::string part_dir);

}  // namespace quantry::agent
