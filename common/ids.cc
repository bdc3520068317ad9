#include "common/ids.h"

#include <openssl/rand.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "common/digest.h"
#include "common/errors.h"
#include "common/utf8_prefix.h"

namespace quantry {
namespace {

constexpr size_t kMaxShownBytes = 128;  // of a wrong name in a message

bool IsLower(char c) { return c >= 'a' && c <= 'z'; }
bool IsDigit(char c) { return c >= '0' && c <= '9'; }

bool IsLabel(std::string_view text, size_t min, size_t max) {
  return text.size() >= min && text.size() <= max && IsLower(text.front()) &&
         std::all_of(text.begin(), text.end(),
                     [](char c) { return IsLower(c) || IsDigit(c) || c == '-'; });
}

absl::Status InvalidName(std::string_view wanted, std::string_view got) {
  const std::string shown = Utf8Prefix(got, kMaxShownBytes);
  return MakeError(Reason::kInvalidName,
                   "wanted " + std::string(wanted) + ", got \"" + shown + "\"",
                   {{"wanted", std::string(wanted)}, {"got", shown}});
}

// "tenants/{tenant}/{collection}/{last}" -> {tenant, last}; empty = no match.
std::vector<std::string_view> Split(std::string_view name, std::string_view collection) {
  std::vector<std::string_view> parts;
  while (parts.size() < 4) {
    size_t slash = name.find('/');
    parts.push_back(name.substr(0, slash));
    if (slash == std::string_view::npos) break;
    name.remove_prefix(slash + 1);
    if (parts.size() == 4) return {};
  }
  if (parts.size() != 4 || parts[0] != "tenants" || parts[2] != collection) return {};
  return {parts[1], parts[3]};
}

std::string Format(std::string_view tenant, std::string_view collection, std::string_view last) {
  return FormatTenantName(tenant) + "/" + std::string(collection) + "/" + std::string(last);
}

constexpr std::string_view kJobForm = "tenants/{tenant}/quantizationJobs/{id}";
constexpr std::string_view kArtifactForm = "tenants/{tenant}/artifacts/{uid}";
constexpr std::string_view kBlobForm = "tenants/{tenant}/blobs/{sha256}";

}  // namespace

std::string NewUuid4() {
  std::array<unsigned char, 16> bytes;
  if (RAND_bytes(bytes.data(), bytes.size()) != 1) std::abort();  // no entropy: nothing is safe
  bytes[6] = (bytes[6] & 0x0F) | 0x40;                            // version 4
  bytes[8] = (bytes[8] & 0x3F) | 0x80;                            // RFC 4122 variant
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text.push_back('-');
    text.push_back(kDigits[bytes[i] >> 4]);
    text.push_back(kDigits[bytes[i] & 15]);
  }
  return text;
}

bool IsUuid(std::string_view text) {
  if (text.size() != 36) return false;
  for (size_t i = 0; i < text.size(); ++i) {
    bool dash = i == 8 || i == 13 || i == 18 || i == 23;
    char c = text[i];
    bool hex = IsDigit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
    if (dash ? c != '-' : !hex) return false;
  }
  return true;
}

absl::Status ValidateJobId(std::string_view id) {
  if (IsLabel(id, 4, 63)) return absl::OkStatus();
  return InvalidName("a job id of 4-63 characters a-z, 0-9 and \"-\", starting with a letter", id);
}

absl::Status ValidateTenant(std::string_view tenant) {
  if (IsLabel(tenant, 1, 63)) return absl::OkStatus();
  return InvalidName("a tenant of 1-63 characters a-z, 0-9 and \"-\", starting with a letter",
                     tenant);
}

absl::StatusOr<std::string> ParseTenantName(std::string_view name) {
  constexpr std::string_view kPrefix = "tenants/";
  if (!name.starts_with(kPrefix) || !IsLabel(name.substr(kPrefix.size()), 1, 63)) {
    return InvalidName("tenants/{tenant}", name);
  }
  return std::string(name.substr(kPrefix.size()));
}

absl::StatusOr<JobName> ParseJobName(std::string_view name) {
  auto parts = Split(name, "quantizationJobs");
  if (parts.empty() || !IsLabel(parts[0], 1, 63) || !IsLabel(parts[1], 4, 63)) {
    return InvalidName(kJobForm, name);
  }
  return JobName{std::string(parts[0]), std::string(parts[1])};
}

absl::StatusOr<ArtifactName> ParseArtifactName(std::string_view name) {
  auto parts = Split(name, "artifacts");
  if (parts.empty() || !IsLabel(parts[0], 1, 63) || !IsUuid(parts[1])) {
    return InvalidName(kArtifactForm, name);
  }
  return ArtifactName{std::string(parts[0]), std::string(parts[1])};
}

absl::StatusOr<BlobName> ParseBlobName(std::string_view name) {
  auto parts = Split(name, "blobs");
  if (parts.empty() || !IsLabel(parts[0], 1, 63) || !IsSha256Hex(parts[1])) {
    return InvalidName(kBlobForm, name);
  }
  return BlobName{std::string(parts[0]), std::string(parts[1])};
}

std::string FormatTenantName(std::string_view tenant) { return "tenants/" + std::string(tenant); }

std::string FormatJobName(std::string_view tenant, std::string_view id) {
  return Format(tenant, "quantizationJobs", id);
}

std::string FormatArtifactName(std::string_view tenant, std::string_view uid) {
  return Format(tenant, "artifacts", uid);
}

std::string FormatBlobName(std::string_view tenant, std::string_view sha256) {
  return Format(tenant, "blobs", sha256);
}

}  // namespace quantry
