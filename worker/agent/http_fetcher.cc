#include "worker/agent/http_fetcher.h"

#include <curl/curl.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <thread>

#include "absl/strings/ascii.h"
#include "common/doubling_wait.h"
#include "common/errors.h"
#include "common/jitter.h"
#include "worker/agent/fetch_rules.h"
#include "worker/agent/http_body.h"
#include "worker/agent/http_get.h"

namespace quantry::agent {
namespace {

using std::chrono::milliseconds;

constexpr int kMaxHops = 5;
constexpr milliseconds kMaxRetryAfter{120'000};
constexpr milliseconds kLookInterval{100};
constexpr std::size_t kMaxTokenBytes = 4096;

absl::Status Forbidden(const std::string& message, const Url& url) {
  return MakeError(Reason::kSourceForbidden, message, {{"url", url.shown()}});
}

// The error a final answer stands for.
absl::Status ErrorOf(const HttpAnswer& answer, const Url& url) {
  const std::string code = answer.header("x-error-code");
  const std::string what = url.shown() + " answered " + std::to_string(answer.status) +
                           (code.empty() ? "" : " (" + code + ")");
  std::map<std::string, std::string> metadata = {{"url", url.shown()},
                                                 {"status", std::to_string(answer.status)}};
  if (answer.status == 401 || answer.status == 403) {
    return MakeError(Reason::kSourceForbidden,
                     what +
                         ": the repository is private or gated, or there is none; give the "
                         "worker a token that may read it (hub_token_file)",
                     std::move(metadata));
  }
  if (answer.status == 404) {
    return MakeError(Reason::kSourceMissing, what + "; check repository and revision",
                     std::move(metadata));
  }
  if (answer.status == 0) {
    return MakeError(Reason::kStorageError, url.shown() + ": " + answer.error, std::move(metadata));
  }
  return MakeError(Reason::kStorageError, what, std::move(metadata));
}

absl::StatusOr<std::string> ReadToken(const std::string& file) {
  if (file.empty()) return std::string();
  std::ifstream in(file);
  std::string token;
  std::getline(in, token);
  absl::StripAsciiWhitespace(&token);
  const bool clean =
      std::all_of(token.begin(), token.end(), [](unsigned char c) { return c > 0x20 && c < 0x7f; });
  if (in.bad() || token.empty() || token.size() > kMaxTokenBytes || !clean) {
    return MakeError(Reason::kSourceForbidden,
                     "hub_token_file: wanted a file with a token on its first line, cannot read "
                     "one from " +
                         file);
  }
  return token;
}

// In slices, so that a cancel does not wait for it.
absl::Status Wait(milliseconds time, const TransferCheck& check) {
  for (; time.count() > 0; time -= kLookInterval) {
    if (absl::Status status = check(0); !status.ok()) return status;
    std::this_thread::sleep_for(std::min(time, kLookInterval));
  }
  return check(0);
}

milliseconds RetryAfter(const HttpAnswer& answer) {
  const int seconds = std::atoi(answer.header("retry-after").c_str());
  return std::clamp(milliseconds(seconds * 1000L), milliseconds(0), kMaxRetryAfter);
}

// An answer that is no redirect, and who gave it.
struct Asked {
  HttpAnswer answer;
  std::unique_ptr<Url> url;
};

absl::Status CheckHop(const FetchOptions& options, const Url& url) {
  if (url.scheme() == "https" && !url.has_user() &&
      IsListedHost(url.host(), options.redirect_hosts)) {
    return absl::OkStatus();
  }
  return Forbidden("the hub redirects to " + url.shown() +
                       ", which hub_redirect_hosts does not list (https only)",
                   url);
}

// One request, over its redirects.
absl::StatusOr<Asked> Ask(const FetchOptions& options, const std::string& token, HttpBody& body,
                          const TransferCheck& check) {
  const auto endpoint = Url::Parse(options.endpoint);
  auto url = Url::Parse(body.url());
  for (int hop = 0; endpoint != nullptr && url != nullptr; ++hop) {
    const bool own = url->SameOrigin(*endpoint);
    if (!own) {
      if (absl::Status status = CheckHop(options, *url); !status.ok()) return status;
    }
    body.BeginRequest();
    const HttpGet::Sink sink = [&](std::string_view data, const HttpAnswer& answer) {
      return body.Take(data, answer);
    };
    HttpGet request(sink, check, /*any_address=*/own);
    HttpAnswer answer = request.Run(*url, own ? token : "", body.offset());
    if (!request.stopped().ok()) return request.stopped();
    if (answer.blocked) {
      return Forbidden(url->shown() + " has only addresses that are not public; refused", *url);
    }
    if (!answer.redirects() || hop == kMaxHops) return Asked{std::move(answer), std::move(url)};
    url = Url::Parse(answer.header("location"), url.get());
  }
  return MakeError(Reason::kStorageError, body.url() + ": no URL, or a redirect to none");
}

// Asks until all is there, or nothing comes any more.
absl::Status Run(const FetchOptions& options, HttpBody& body, const TransferCheck& check) {
  static std::once_flag once;
  std::call_once(once, [] { curl_global_init(CURL_GLOBAL_DEFAULT); });
  const auto token = ReadToken(options.token_file);
  if (!token.ok()) return token.status();
  DoublingWait waits(options.first_wait, options.longest_wait);
  for (int tries = 1;; ++tries) {
    const std::int64_t before = body.offset();
    const auto asked = Ask(options, *token, body, check);
    if (!asked.ok()) return asked.status();
    const HttpAnswer& answer = asked->answer;
    if (answer.ok() && body.complete()) return absl::OkStatus();
    if (!answer.ok() && !answer.retryable()) return ErrorOf(answer, *asked->url);
    if (body.offset() > before) {
      tries = 0;
      waits.Reset();
    }
    if (tries >= options.max_tries) {
      if (!answer.ok()) return ErrorOf(answer, *asked->url);
      return MakeError(Reason::kStorageError, asked->url->shown() + " ends too early");
    }
    const milliseconds wait = waits.Next();
    const milliseconds jittered = RandomTime(wait / 2, wait);
    absl::Status waited = Wait(std::max(jittered, RetryAfter(answer)), check);
    if (!waited.ok()) return waited;
  }
}

}  // namespace

absl::StatusOr<std::string> HttpFetcher::Get(const std::string& url, std::int64_t max_bytes,
                                             const TransferCheck& check) const {
  MemoryBody body(url, max_bytes, check);
  if (absl::Status status = Run(options_, body, check); !status.ok()) return status;
  return std::move(body.text);
}

absl::Status HttpFetcher::Download(const std::string& url, const std::string& file,
                                   std::int64_t size_bytes, const TransferCheck& check) const {
  FileBody target(url, file, size_bytes, check);
  if (absl::Status status = target.Open(); !status.ok()) return status;
  if (!target.complete()) {
    if (absl::Status status = Run(options_, target, check); !status.ok()) return status;
  }
  return target.Sync();
}

}  // namespace quantry::agent
