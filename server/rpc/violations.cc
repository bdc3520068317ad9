#include "server/rpc/violations.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/utf8_prefix.h"

namespace quantry::server {
namespace {

// Error details travel in HTTP/2 trailers, of which clients take 8 KiB.
constexpr size_t kMaxViolations = 16;
constexpr size_t kMaxDescriptionBytes = 240;
constexpr size_t kMaxGotBytes = 80;

}  // namespace

void Violations::Add(std::string field, std::string description) {
  ++count_;
  if (violations_.size() >= kMaxViolations) return;
  if (description.size() > kMaxDescriptionBytes) {
    description = Utf8Prefix(description, kMaxDescriptionBytes) + "...";
  }
  violations_.push_back({std::move(field), std::move(description)});
}

void Violations::Wanted(std::string field, std::string_view wanted, std::string_view got) {
  Add(std::move(field),
      absl::StrCat("wanted ", std::string(wanted), ", got ", Utf8Prefix(got, kMaxGotBytes)));
}

void Violations::Range(const std::string& field, std::int64_t value, std::int64_t lo,
                       std::int64_t hi) {
  if (value < lo || value > hi) {
    Wanted(field, absl::StrCat(lo, " to ", hi), absl::StrCat(value));
  }
}

void Violations::Share(const std::string& field, double value) {
  if (!(value >= 0 && value <= 1)) Wanted(field, "0 to 1", absl::StrCat(value));
}

absl::Status Violations::ToStatus(Reason reason) const {
  if (empty()) return absl::OkStatus();
  const std::string more =
      count_ == 1 ? "" : absl::StrCat(" (and ", count_ - 1, " more; see the field violations)");
  return MakeDetailedError(
      reason, absl::StrCat(violations_[0].field, ": ", violations_[0].description, more),
      {.field_violations = violations_});
}

}  // namespace quantry::server
