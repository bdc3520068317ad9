// Collects everything that is wrong with a request, so that a caller learns
// all of it at once (google.rpc.BadRequest).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "common/errors.h"

namespace quantry::server {

// Not thread-safe; lives for one request.
class Violations {
 public:
  void Add(std::string field, std::string description);
  // Adds "wanted {wanted}, got {got}".
  void Wanted(std::string field, std::string_view wanted, std::string_view got);
  // Checks lo <= value <= hi.
  void Range(const std::string& field, std::int64_t value, std::int64_t lo, std::int64_t hi);
  // Checks 0 <= value <= 1; NaN is refused.
  void Share(const std::string& field, double value);

  bool empty() const { return count_ == 0; }
  // The first ones, as many as an error may carry.
  const std::vector<FieldViolation>& first() const { return violations_; }
  // OK, or `reason` with the violations; the message holds the first one.
  absl::Status ToStatus(Reason reason) const;

 private:
  std::vector<FieldViolation> violations_;  // the first kMaxViolations
  int count_ = 0;
};

}  // namespace quantry::server
