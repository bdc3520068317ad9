#include "worker/agent/http_get.h"

#include <sys/socket.h>

#include "absl/strings/ascii.h"
#include "worker/agent/fetch_rules.h"

namespace quantry::agent {
namespace {

constexpr long kConnectSeconds = 15;
constexpr long kSlowestBytesPerSecond = 1024;
constexpr long kSlowSeconds = 60;

}  // namespace

std::unique_ptr<Url> Url::Parse(const std::string& text, const Url* base) {
  std::unique_ptr<Url> url(new Url());
  if (base != nullptr) url->handle_.reset(curl_url_dup(base->handle_.get()));
  if (curl_url_set(url->handle_.get(), CURLUPART_URL, text.c_str(), 0) != CURLUE_OK) {
    return nullptr;
  }
  return url;
}

std::string Url::host() const { return absl::AsciiStrToLower(Get(CURLUPART_HOST)); }

std::string Url::Get(CURLUPart part) const {
  char* value = nullptr;
  if (curl_url_get(handle_.get(), part, &value, CURLU_DEFAULT_PORT) != CURLUE_OK) return "";
  std::string text(value);
  curl_free(value);
  return text;
}

std::string HttpAnswer::header(const std::string& name) const {
  const auto found = headers.find(name);
  return found == headers.end() ? "" : found->second;
}

HttpGet::HttpGet(const Sink& sink, const TransferCheck& check, bool any_address)
    : sink_(sink), check_(check), any_address_(any_address), handle_(curl_easy_init()) {}

HttpAnswer HttpGet::Run(const Url& url, const std::string& token, std::int64_t offset) {
  CURL* curl = handle_.get();
  const std::string target = url.text();
  curl_easy_setopt(curl, CURLOPT_URL, target.c_str());
  SetOptions(curl);
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

void HttpGet::SetOptions(CURL* curl) {
  curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, any_address_ ? "http,https" : "https");
  curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 0L);
  curl_easy_setopt(curl, CURLOPT_PROXY, "");
  curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(curl, CURLOPT_USERAGENT, "quantry/" QUANTRY_VERSION);
  curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT, kConnectSeconds);
  curl_easy_setopt(curl, CURLOPT_LOW_SPEED_LIMIT, kSlowestBytesPerSecond);
  curl_easy_setopt(curl, CURLOPT_LOW_SPEED_TIME, kSlowSeconds);
  curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, &HttpGet::OnBody);
  curl_easy_setopt(curl, CURLOPT_WRITEDATA, this);
  curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, &HttpGet::OnHeader);
  curl_easy_setopt(curl, CURLOPT_HEADERDATA, this);
  curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
  curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, &HttpGet::OnProgress);
  curl_easy_setopt(curl, CURLOPT_XFERINFODATA, this);
  curl_easy_setopt(curl, CURLOPT_OPENSOCKETFUNCTION, &HttpGet::OnSocket);
  curl_easy_setopt(curl, CURLOPT_OPENSOCKETDATA, this);
}

std::size_t HttpGet::OnBody(char* data, std::size_t, std::size_t size, void* self) {
  auto& request = *static_cast<HttpGet*>(self);
  curl_easy_getinfo(request.handle_.get(), CURLINFO_RESPONSE_CODE, &request.answer_.status);
  if (!request.answer_.ok()) return size;  // an error page
  request.stopped_ = request.sink_({data, size}, request.answer_);
  return request.stopped_.ok() ? size : 0;
}

std::size_t HttpGet::OnHeader(char* data, std::size_t, std::size_t size, void* self) {
  auto& request = *static_cast<HttpGet*>(self);
  const std::string_view line(data, size);
  const std::size_t colon = line.find(':');
  if (colon != std::string_view::npos) {
    std::string value(line.substr(colon + 1));
    absl::StripAsciiWhitespace(&value);
    request.answer_.headers[absl::AsciiStrToLower(std::string(line.substr(0, colon)))] = value;
  }
  return size;
}

int HttpGet::OnProgress(void* self, curl_off_t, curl_off_t, curl_off_t, curl_off_t) {
  auto& request = *static_cast<HttpGet*>(self);
  if (request.stopped_.ok()) request.stopped_ = request.check_(0);
  return request.stopped_.ok() ? 0 : 1;
}

// The address is checked where the connection is made: a name cannot mean
// another one by then.
curl_socket_t HttpGet::OnSocket(void* self, curlsocktype, curl_sockaddr* address) {
  auto& request = *static_cast<HttpGet*>(self);
  if (!request.any_address_ && !IsPublicAddress(address->addr)) {
    request.answer_.blocked = !request.asked_;
    return CURL_SOCKET_BAD;
  }
  request.asked_ = true;
  request.answer_.blocked = false;
  return socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
}

}  // namespace quantry::agent
