// Page tokens: opaque, signed with a key of this data folder, bound to the
// list they came from. They carry no authority and no secret, only a position.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "server/jobs/job.h"

namespace quantry::server {

// Immutable, thread-safe.
class PageTokens {
 public:
  explicit PageTokens(std::string key) : key_(std::move(key)) {}

  // Reads the key from `path`, or makes one (mode 0600) when there is none.
  static absl::StatusOr<PageTokens> Open(const std::string& path);

  static absl::StatusOr<std::string> NewKey();

  // Who keeps the key: the same for all servers of one job store, another for
  // every other store. Tells nothing of the key.
  std::string StoreId() const;

  // `scope` names the list: method, parent and filter. A token only works with
  // the scope it was made for.
  std::string Encode(std::string_view scope, const Cursor& cursor) const;
  std::string Encode(std::string_view scope, std::int64_t sequence) const;
  std::string EncodeId(std::string_view scope, const std::string& id) const;

  // INVALID_ARGUMENT INVALID_PAGE_TOKEN for anything Encode did not make.
  absl::StatusOr<Cursor> DecodeCursor(std::string_view scope, std::string_view token) const;
  absl::StatusOr<std::int64_t> DecodeSequence(std::string_view scope, std::string_view token) const;
  absl::StatusOr<std::string> DecodeId(std::string_view scope, std::string_view token) const;

 private:
  std::string Seal(std::string_view scope, std::string payload) const;
  absl::StatusOr<std::string> Unseal(std::string_view scope, std::string_view token) const;
  std::string Signature(std::string_view scope, std::string_view payload) const;

  std::string key_;
};

}  // namespace quantry::server
