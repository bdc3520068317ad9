#include "worker/agent/http_fetcher.h"

#include <arpa/inet.h>
#include <curl/curl.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <thread>

#include "common/errors.h"
#include "common/unique_fd.h"

namespace quantry::agent {
namespace {

using std::chrono::milliseconds;

constexpr int kMaxHops = 5;
constexpr long kConnectSeconds = 15;
constexpr long kSlowestBytesPerSecond = 1024;
constexpr long kSlowSeconds = 60;
constexpr milliseconds kMaxRetryAfter{120'000};
constexpr milliseconds kLookInterval{100};
constexpr std::size_t kMaxTokenBytes = 4096;

struct Range4 {
  std::uint32_t network;
  int bits;
};
// RFC 6890 and its successors: what is not for the public internet.
constexpr Range4 kNotPublic4[] = {
    {0x00000000, 8},  {0x0a000000, 8},  {0x64400000, 10}, {0x7f000000, 8},  {0xa9fe0000, 16},
    {0xac100000, 12}, {0xc0000000, 24}, {0xc0000200, 24}, {0xc0586300, 24}, {0xc0a80000, 16},
    {0xc6120000, 15}, {0xc6336400, 24}, {0xcb007100, 24}, {0xe0000000, 4},  {0xf0000000, 4}};

bool IsPublic4(std::uint32_t address) {
  return std::none_of(std::begin(kNotPublic4), std::end(kNotPublic4), [&](const Range4& range) {
    return (address >> (32 - range.bits)) == (range.network >> (32 - range.bits));
  });
}

// Global unicast is 2000::/3; of it, not the tunnels that embed an IPv4 address
// (2001::/32, 2002::/16) and not documentation (2001:db8::/32).
bool IsPublic6(const in6_addr& address) {
  const std::uint8_t* b = address.s6_addr;
  if ((b[0] & 0xe0) != 0x20) return false;
  if (b[0] == 0x20 && b[1] == 0x02) return false;
  const bool special =
      b[0] == 0x20 && b[1] == 0x01 && ((b[2] == 0 && b[3] == 0) || (b[2] == 0x0d && b[3] == 0xb8));
  return !special;
}

std::string Lower(std::string_view text) {
  std::string lower(text);
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return lower;
}

std::string_view Trim(std::string_view text) {
  constexpr std::string_view kBlank = " \t\r\n";
  const std::size_t begin = text.find_first_not_of(kBlank);
  if (begin == std::string_view::npos) return "";
  return text.substr(begin, text.find_last_not_of(kBlank) - begin + 1);
}

// A URL taken apart by curl itself, so that what is checked is what is asked.
class Url {
 public:
  static std::unique_ptr<Url> Parse(const std::string& text, const Url* base = nullptr) {
    std::unique_ptr<Url> url(new Url());
    if (base != nullptr) url->handle_.reset(curl_url_dup(base->handle_.get()));
    if (curl_url_set(url->handle_.get(), CURLUPART_URL, text.c_str(), 0) != CURLUE_OK) {
      return nullptr;
    }
    return url;
  }
  std::string scheme() const { return Get(CURLUPART_SCHEME); }
  std::string host() const { return Lower(Get(CURLUPART_HOST)); }
  std::string port() const { return Get(CURLUPART_PORT); }
  std::string text() const { return Get(CURLUPART_URL); }
  // For messages: signatures stand in the query.
  std::string shown() const { return scheme() + "://" + host() + Get(CURLUPART_PATH); }
  bool has_user() const { return !Get(CURLUPART_USER).empty() || !Get(CURLUPART_PASSWORD).empty(); }
  bool SameOrigin(const Url& other) const {
    return scheme() == other.scheme() && host() == other.host() && port() == other.port();
  }

 private:
  struct Cleanup {
    void operator()(CURLU* handle) const { curl_url_cleanup(handle); }
  };
  Url() : handle_(curl_url()) {}
  std::string Get(CURLUPart part) const {
    char* value = nullptr;
    if (curl_url_get(handle_.get(), part, &value, CURLU_DEFAULT_PORT) != CURLUE_OK) return "";
    std::string text(value);
    curl_free(value);
    return text;
  }
  std::unique_ptr<CURLU, Cleanup> handle_;
};

// What one request came to.
struct Answer {
  long status = 0;  // 0 = none came
  std::map<std::string, std::string> headers;
  std::string error;  // of the connection
  bool blocked = false;

  bool ok() const { return status == 200 || status == 206; }
  bool redirects() const { return status >= 301 && status <= 308 && status != 304; }
  bool retryable() const { return status == 0 || status == 408 || status == 429 || status >= 500; }
  std::string header(const std::string& name) const {
    const auto found = headers.find(name);
    return found == headers.end() ? "" : found->second;
  }
};

// One GET without redirects.
class Request {
 public:
  // `sink` gets the body of a 200 or 206; what it or `check` returns ends it.
  using Sink = std::function<absl::Status(std::string_view data, const Answer& answer)>;

  Request(const Sink& sink, const TransferCheck& check, bool any_address)
      : sink_(sink), check_(check), any_address_(any_address), handle_(curl_easy_init()) {}

  Answer Run(const Url& url, const std::string& token, std::int64_t offset) {
    CURL* curl = handle_.get();
    const std::string target = url.text();
    curl_easy_setopt(curl, CURLOPT_URL, target.c_str());
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, any_address_ ? "http,https" : "https");
    curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 0L);
    curl_easy_setopt(curl, CURLOPT_PROXY, "");
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_USERAGENT, "quantry/" QUANTRY_VERSION);
    curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT, kConnectSeconds);
    curl_easy_setopt(curl, CURLOPT_LOW_SPEED_LIMIT, kSlowestBytesPerSecond);
    curl_easy_setopt(curl, CURLOPT_LOW_SPEED_TIME, kSlowSeconds);
    SetCallbacks(curl);
    curl_slist* list = nullptr;
    if (!token.empty()) list = curl_slist_append(list, ("Authorization: Bearer " + token).c_str());
    const std::string range = "Range: bytes=" + std::to_string(offset) + "-";
    if (offset > 0) list = curl_slist_append(list, range.c_str());
    const std::unique_ptr<curl_slist, decltype(&curl_slist_free_all)> owned(list,
                                                                            curl_slist_free_all);
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, list);
    const CURLcode code = curl_easy_perform(curl);
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &answer_.status);
    if (code != CURLE_OK) {
      answer_.error = curl_easy_strerror(code);
      if (answer_.ok()) answer_.status = 0;  // the body broke off
    }
    return answer_;
  }

  // What ended the transfer from this side.
  const absl::Status& stopped() const { return stopped_; }

 private:
  void SetCallbacks(CURL* curl) {
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, &Request::OnBody);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, this);
    curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, &Request::OnHeader);
    curl_easy_setopt(curl, CURLOPT_HEADERDATA, this);
    curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
    curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, &Request::OnProgress);
    curl_easy_setopt(curl, CURLOPT_XFERINFODATA, this);
    curl_easy_setopt(curl, CURLOPT_OPENSOCKETFUNCTION, &Request::OnSocket);
    curl_easy_setopt(curl, CURLOPT_OPENSOCKETDATA, this);
  }

  static std::size_t OnBody(char* data, std::size_t, std::size_t size, void* self) {
    auto& request = *static_cast<Request*>(self);
    curl_easy_getinfo(request.handle_.get(), CURLINFO_RESPONSE_CODE, &request.answer_.status);
    if (!request.answer_.ok()) return size;  // an error page
    request.stopped_ = request.sink_({data, size}, request.answer_);
    return request.stopped_.ok() ? size : 0;
  }
  static std::size_t OnHeader(char* data, std::size_t, std::size_t size, void* self) {
    auto& request = *static_cast<Request*>(self);
    const std::string_view line(data, size);
    const std::size_t colon = line.find(':');
    if (colon != std::string_view::npos) {
      request.answer_.headers[Lower(line.substr(0, colon))] = Trim(line.substr(colon + 1));
    }
    return size;
  }
  static int OnProgress(void* self, curl_off_t, curl_off_t, curl_off_t, curl_off_t) {
    auto& request = *static_cast<Request*>(self);
    if (request.stopped_.ok()) request.stopped_ = request.check_(0);
    return request.stopped_.ok() ? 0 : 1;
  }
  // The address is checked where the connection is made: a name cannot mean
  // another one by then.
  static curl_socket_t OnSocket(void* self, curlsocktype, curl_sockaddr* address) {
    auto& request = *static_cast<Request*>(self);
    if (!request.any_address_ && !IsPublicAddress(address->addr)) {
      request.answer_.blocked = true;
      return CURL_SOCKET_BAD;
    }
    return socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
  }

  struct Cleanup {
    void operator()(CURL* handle) const { curl_easy_cleanup(handle); }
  };
  const Sink& sink_;
  const TransferCheck& check_;
  const bool any_address_;
  std::unique_ptr<CURL, Cleanup> handle_;
  Answer answer_;
  absl::Status stopped_;
};

absl::Status Forbidden(const std::string& message, const Url& url) {
  return MakeError(Reason::kSourceForbidden, message, {{"url", url.shown()}});
}

// The error a final answer stands for.
absl::Status ErrorOf(const Answer& answer, const Url& url) {
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
  token = std::string(Trim(token));
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

double Random() {
  thread_local std::mt19937 generator{std::random_device{}()};
  return std::uniform_real_distribution<>(0.5, 1.0)(generator);
}

// In slices, so that a cancel does not wait for it.
absl::Status Wait(milliseconds time, const TransferCheck& check) {
  for (; time.count() > 0; time -= kLookInterval) {
    if (absl::Status status = check(0); !status.ok()) return status;
    std::this_thread::sleep_for(std::min(time, kLookInterval));
  }
  return check(0);
}

milliseconds RetryAfter(const Answer& answer) {
  const int seconds = std::atoi(answer.header("retry-after").c_str());
  return std::clamp(milliseconds(seconds * 1000L), milliseconds(0), kMaxRetryAfter);
}

absl::Status DiskError(const std::string& what, const std::string& path, int error) {
  const std::string message = what + " " + path + ": " + std::strerror(error);
  const bool full = error == ENOSPC || error == EDQUOT;
  return MakeError(full ? Reason::kDiskFull : Reason::kStorageError, message, {{"path", path}});
}

absl::Status WriteAll(int fd, std::string_view data, const std::string& file) {
  while (!data.empty()) {
    const ssize_t written = write(fd, data.data(), data.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return DiskError("write", file, errno);
    data.remove_prefix(static_cast<std::size_t>(written));
  }
  return absl::OkStatus();
}

// One body on its way in, over any number of requests.
class Transfer {
 public:
  Transfer(std::string url, const TransferCheck& check) : url_(std::move(url)), check_(check) {}
  virtual ~Transfer() = default;

  const std::string& url() const { return url_; }
  virtual std::int64_t offset() const = 0;
  virtual bool complete() const = 0;  // what there is, is all
  virtual absl::Status Restart() = 0;
  virtual absl::Status Append(std::string_view data) = 0;

  virtual void BeginRequest() { begins_ = true; }
  absl::Status Take(std::string_view data, const Answer& answer) {
    // A server that ignores the range begins anew.
    if (begins_ && answer.status == 200 && offset() > 0) {
      if (absl::Status status = Restart(); !status.ok()) return status;
    }
    begins_ = false;
    if (absl::Status status = Append(data); !status.ok()) return status;
    return check_(static_cast<std::int64_t>(data.size()));
  }

 private:
  const std::string url_;
  const TransferCheck& check_;
  bool begins_ = true;
};

// In memory; small, so always from the start.
class ToMemory : public Transfer {
 public:
  ToMemory(const std::string& url, std::int64_t max_bytes, const TransferCheck& check)
      : Transfer(url, check), max_bytes_(max_bytes) {}

  std::int64_t offset() const override { return 0; }
  bool complete() const override { return true; }
  void BeginRequest() override { text.clear(); }
  absl::Status Restart() override { return absl::OkStatus(); }
  absl::Status Append(std::string_view data) override {
    if (static_cast<std::int64_t>(text.size() + data.size()) > max_bytes_) {
      return MakeError(Reason::kResourceLimit, url() + ": wanted at most " +
                                                   std::to_string(max_bytes_) + " bytes, got more");
    }
    text.append(data);
    return absl::OkStatus();
  }

  std::string text;

 private:
  const std::int64_t max_bytes_;
};

// To the end of a file.
class ToFile : public Transfer {
 public:
  ToFile(const std::string& url, std::string path, std::int64_t size_bytes,
         const TransferCheck& check)
      : Transfer(url, check),
        path_(std::move(path)),
        size_bytes_(size_bytes),
        fd_(open(path_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600)) {}

  absl::Status Open() {
    if (!fd_.ok()) return DiskError("open", path_, errno);
    offset_ = lseek(fd_.get(), 0, SEEK_END);
    return offset_ > size_bytes_ ? Restart() : absl::OkStatus();
  }
  absl::Status Sync() const {
    return fsync(fd_.get()) == 0 ? absl::OkStatus() : DiskError("fsync", path_, errno);
  }

  std::int64_t offset() const override { return offset_; }
  bool complete() const override { return offset_ == size_bytes_; }
  absl::Status Restart() override {
    offset_ = 0;
    if (ftruncate(fd_.get(), 0) == 0 && lseek(fd_.get(), 0, SEEK_SET) == 0) return absl::OkStatus();
    return DiskError("truncate", path_, errno);
  }
  absl::Status Append(std::string_view data) override {
    if (offset_ + static_cast<std::int64_t>(data.size()) > size_bytes_) {
      return MakeError(Reason::kStorageError, url() + ": wanted " + std::to_string(size_bytes_) +
                                                  " bytes as the hub lists, got more");
    }
    if (absl::Status status = WriteAll(fd_.get(), data, path_); !status.ok()) return status;
    offset_ += static_cast<std::int64_t>(data.size());
    return absl::OkStatus();
  }

 private:
  const std::string path_;
  const std::int64_t size_bytes_;
  UniqueFd fd_;
  std::int64_t offset_ = 0;
};

// An answer that is no redirect, and who gave it.
struct Asked {
  Answer answer;
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
absl::StatusOr<Asked> Ask(const FetchOptions& options, const std::string& token, Transfer& transfer,
                          const TransferCheck& check) {
  const auto endpoint = Url::Parse(options.endpoint);
  auto url = Url::Parse(transfer.url());
  for (int hop = 0; endpoint != nullptr && url != nullptr; ++hop) {
    const bool own = url->SameOrigin(*endpoint);
    if (!own) {
      if (absl::Status status = CheckHop(options, *url); !status.ok()) return status;
    }
    transfer.BeginRequest();
    const Request::Sink sink = [&](std::string_view data, const Answer& answer) {
      return transfer.Take(data, answer);
    };
    Request request(sink, check, /*any_address=*/own);
    Answer answer = request.Run(*url, own ? token : "", transfer.offset());
    if (!request.stopped().ok()) return request.stopped();
    if (answer.blocked) {
      return Forbidden(url->shown() + " has an address that is not public; refused", *url);
    }
    if (!answer.redirects() || hop == kMaxHops) return Asked{std::move(answer), std::move(url)};
    url = Url::Parse(answer.header("location"), url.get());
  }
  return MakeError(Reason::kStorageError, transfer.url() + ": no URL, or a redirect to none");
}

// Asks until all is there, or nothing comes any more.
absl::Status Run(const FetchOptions& options, Transfer& transfer, const TransferCheck& check) {
  static std::once_flag once;
  std::call_once(once, [] { curl_global_init(CURL_GLOBAL_DEFAULT); });
  const auto token = ReadToken(options.token_file);
  if (!token.ok()) return token.status();
  milliseconds backoff = options.first_wait;
  for (int tries = 1;; ++tries) {
    const std::int64_t before = transfer.offset();
    const auto asked = Ask(options, *token, transfer, check);
    if (!asked.ok()) return asked.status();
    const Answer& answer = asked->answer;
    if (answer.ok() && transfer.complete()) return absl::OkStatus();
    if (!answer.ok() && !answer.retryable()) return ErrorOf(answer, *asked->url);
    if (transfer.offset() > before) {
      tries = 0;
      backoff = options.first_wait;
    }
    if (tries >= options.max_tries) {
      if (!answer.ok()) return ErrorOf(answer, *asked->url);
      return MakeError(Reason::kStorageError, asked->url->shown() + " ends too early");
    }
    const auto jittered =
        milliseconds(static_cast<long>(static_cast<double>(backoff.count()) * Random()));
    absl::Status waited = Wait(std::max(jittered, RetryAfter(answer)), check);
    if (!waited.ok()) return waited;
    backoff = std::min(backoff * 2, options.longest_wait);
  }
}

}  // namespace

absl::StatusOr<std::string> HttpFetcher::Get(const std::string& url, std::int64_t max_bytes,
                                             const TransferCheck& check) const {
  ToMemory body(url, max_bytes, check);
  if (absl::Status status = Run(options_, body, check); !status.ok()) return status;
  return std::move(body.text);
}

absl::Status HttpFetcher::Download(const std::string& url, const std::string& file,
                                   std::int64_t size_bytes, const TransferCheck& check) const {
  ToFile target(url, file, size_bytes, check);
  if (absl::Status status = target.Open(); !status.ok()) return status;
  if (!target.complete()) {
    if (absl::Status status = Run(options_, target, check); !status.ok()) return status;
  }
  return target.Sync();
}

bool IsListedHost(std::string_view host, const std::vector<std::string>& listed) {
  return std::any_of(listed.begin(), listed.end(), [&](const std::string& entry) {
    const std::string name = Lower(entry);
    if (name.rfind("*.", 0) != 0) return host == name;
    const std::string_view below = std::string_view(name).substr(1);  // ".example.com"
    return host.size() > below.size() && host.substr(host.size() - below.size()) == below;
  });
}

bool IsPublicAddress(const sockaddr& address) {
  if (address.sa_family == AF_INET) {
    sockaddr_in v4{};
    std::memcpy(&v4, &address, sizeof v4);
    return IsPublic4(ntohl(v4.sin_addr.s_addr));
  }
  if (address.sa_family == AF_INET6) {
    sockaddr_in6 v6{};
    std::memcpy(&v6, &address, sizeof v6);
    return IsPublic6(v6.sin6_addr);
  }
  return false;
}

}  // namespace quantry::agent
