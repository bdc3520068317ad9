#include <arrow/util/io_util.h>

#include <algorithm>
#include <cctype>
#include <initializer_list>
#include <optional>

#include "common/storage_arrow.h"
#include "common/storage_internal.h"

namespace quantry::storage_internal {
namespace {

constexpr std::string_view kGoogle = "google::cloud::Status(";

bool Mentions(std::string_view text, std::initializer_list<std::string_view> words) {
  return std::any_of(words.begin(), words.end(), [&](std::string_view word) {
    return text.find(word) != std::string_view::npos;
  });
}

// What follows the last `mark`; nullopt when it is not there.
std::optional<std::string_view> After(std::string_view text, std::string_view mark) {
  const auto at = text.rfind(mark);
  if (at == std::string_view::npos) return std::nullopt;
  return text.substr(at + mark.size());
}

// "Code] 403 What it means." -> "HTTP status 403"; "" when no answer came.
std::string AzureStatus(std::string_view text) {
  const auto end = text.find("] ");
  if (end == std::string_view::npos) return "";
  const std::string_view status = text.substr(end + 2, 3);
  const bool is_number =
      status.size() == 3 && std::all_of(status.begin(), status.end(), [](char c) {
        return std::isdigit(static_cast<unsigned char>(c)) != 0;
      });
  return is_number ? "HTTP status " + std::string(status) : "";
}

// What of an error's text says which one it is: of S3 its code, "ACCESS_DENIED" or
// "UNKNOWN (HTTP status 404)"; of Azure the status; of Google its code; of others all but
// the path.
std::string TellingPart(std::string_view text, std::string_view path) {
  if (const auto s3 = After(text, "AWS Error ")) {
    return std::string(s3->substr(0, s3->find(" during ")));
  }
  if (const auto azure = After(text, "Azure Error: [")) return AzureStatus(*azure);
  if (const auto google = After(text, kGoogle)) {
    return std::string(google->substr(0, google->find(':')));
  }
  std::string part(text);
  for (auto at = part.find(path); !path.empty() && at != std::string::npos; at = part.find(path)) {
    part.erase(at, path.size());
  }
  return part;
}

// The store's text on one line, without the signatures of URLs.
std::string Told(std::string_view text) {
  constexpr std::string_view kSignature = "sig=";
  std::string told(text);
  std::replace(told.begin(), told.end(), '\n', ' ');
  for (auto at = told.find(kSignature); at != std::string::npos; at = told.find(kSignature, at)) {
    at += kSignature.size();
    const auto end = std::min(told.find_first_of("&'\" )", at), told.size());
    told.replace(at, end - at, "...");
  }
  return told;
}

}  // namespace

absl::StatusCode CodeOfFailure(std::string_view text, std::string_view path) {
  const std::string part = TellingPart(text, path);
  // First: "The access key ID you provided does not exist". "Access Denied" is what S3 says of an
  // object in its answer, a 200, to the deletion of several.
  if (Mentions(part, {"ACCESS_DENIED", "AccessDenied", "Access Denied", "FORBIDDEN",
                      "INVALID_ACCESS_KEY", "SIGNATURE_DOES_NOT_MATCH", "PERMISSION_DENIED",
                      "UNAUTHENTICATED", "HTTP status 401", "HTTP status 403"})) {
    return absl::StatusCode::kPermissionDenied;
  }
  if (Mentions(part, {"NOT_FOUND", "NO_SUCH", "does not exist", "NotFound", "HTTP status 404"})) {
    return absl::StatusCode::kNotFound;
  }
  return absl::StatusCode::kUnavailable;
}

// Arrow reports most object store failures as IOError with the store's text; of Google 429
// as a capacity, what it has no code for as unknown, a broken answer as invalid.
absl::Status FromArrow(const arrow::Status& status, std::string_view action,
                       std::string_view path) {
  const std::string message =
      std::string(action) + " " + std::string(path) + ": " + Told(status.message());
  const bool is_googles = status.message().find(kGoogle) != std::string::npos;
  if ((status.IsInvalid() && !is_googles) || status.IsTypeError())
    return absl::InvalidArgumentError(message);
  if (status.IsNotImplemented()) return absl::UnimplementedError(message);
  if (status.IsOutOfMemory()) return absl::ResourceExhaustedError(message);
  if (status.IsCapacityError() || status.IsUnknownError() || status.IsInvalid())
    return absl::UnavailableError(message);
  if (!status.IsIOError()) return absl::InternalError(message);
  if (const int error = arrow::internal::ErrnoFromStatus(status); error != 0) {
    return absl::Status(ErrnoStatus(error, action, path).code(), message);
  }
  return absl::Status(CodeOfFailure(status.message(), path), message);
}

}  // namespace quantry::storage_internal
