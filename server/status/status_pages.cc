#include "server/status/status_pages.h"

#include <optional>
#include <string_view>
#include <utility>

#include "common/ids.h"

namespace quantry::server {

std::string_view EmbeddedFile(std::string_view name);  // made by quantry_embed

namespace {

constexpr std::string_view kJobs = "/jobs/";
constexpr std::string_view kAssets = "/assets/";
constexpr std::string_view kJson = ".json";
constexpr char kJsonType[] = "application/json";
constexpr char kHtmlType[] = "text/html; charset=utf-8";

HttpResponse Guarded(HttpResponse response) {
  response.headers = {
      {"Content-Security-Policy",
       "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
       "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"},
      {"Cross-Origin-Opener-Policy", "same-origin"},
      {"Cross-Origin-Resource-Policy", "same-origin"},
      {"Referrer-Policy", "no-referrer"},
      {"X-Frame-Options", "DENY"}};
  return response;
}

HttpResponse Embedded(std::string_view name, const char* type) {
  return {.content_type = type, .body = std::string(EmbeddedFile(name))};
}

HttpResponse NotFound() { return {.status = 404, .body = "no such page; / shows the jobs\n"}; }

// nullptr: no such asset.
const char* AssetType(std::string_view name) {
  if (name == "status.css") return "text/css; charset=utf-8";
  if (name == "status.js") return "text/javascript; charset=utf-8";
  return name == "icon.svg" ? "image/svg+xml" : nullptr;
}

HttpResponse FromReader(const absl::StatusOr<std::string>& json) {
  if (json.ok()) return {.content_type = kJsonType, .body = *json};
  const bool missing = absl::IsNotFound(json.status());
  return {.status = missing ? 404 : 503,
          .content_type = kJsonType,
          .body = JsonText({{"error", std::string(json.status().message())}})};
}

// TENANT/ID; nullopt when it can name no job.
std::optional<JobKey> ParseKey(std::string_view text) {
  const size_t slash = text.find('/');
  if (slash == std::string_view::npos) return std::nullopt;
  JobKey key{std::string(text.substr(0, slash)), std::string(text.substr(slash + 1))};
  if (!ValidateTenant(key.tenant).ok() || !ValidateJobId(key.id).ok()) return std::nullopt;
  return key;
}

HttpResponse JobAnswer(StatusReader& reader, std::string_view rest) {
  const bool json = rest.size() > kJson.size() && rest.substr(rest.size() - kJson.size()) == kJson;
  if (json) rest.remove_suffix(kJson.size());
  const std::optional<JobKey> key = ParseKey(rest);
  if (!key) return NotFound();
  // The page itself is the same for every job; its script asks for the data.
  return json ? FromReader(reader.JobPage(*key)) : Embedded("job.html", kHtmlType);
}

HttpResponse Answer(StatusReader& reader, std::string_view path) {
  if (path == "/") return Embedded("index.html", kHtmlType);
  if (path == "/status.json") return FromReader(reader.Status());
  if (path.substr(0, kJobs.size()) == kJobs) return JobAnswer(reader, path.substr(kJobs.size()));
  if (path.substr(0, kAssets.size()) == kAssets) {
    const std::string_view name = path.substr(kAssets.size());
    if (const char* type = AssetType(name)) return Embedded(name, type);
  }
  return NotFound();
}

}  // namespace

HttpAdmin::Pages StatusPages(JobStore* store, OperatorView* view, const Clock* clock) {
  auto reader = std::make_shared<StatusReader>(store, view, clock);
  return [reader](const std::string& path) { return Guarded(Answer(*reader, path)); };
}

}  // namespace quantry::server
