#pragma once

#include <curl/curl.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "common/storage.h"

namespace quantry::agent {

// A URL taken apart by curl itself, so that what is checked is what is asked.
class Url {
 public:
  // Null when it is none. Relative ones are resolved against `base`.
  static std::unique_ptr<Url> Parse(const std::string& text, const Url* base = nullptr);

  std::string scheme() const { return Get(CURLUPART_SCHEME); }
  std::string host() const;  // lower case
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
  std::string Get(CURLUPart part) const;
  std::unique_ptr<CURLU, Cleanup> handle_;
};

// What one request came to.
struct HttpAnswer {
  long status = 0;                                  // 0 = none came
  std::map<std::string, std::string> headers = {};  // by name in lower case
  std::string error = {};                           // of the connection
  bool blocked = false;                             // none of the addresses may be asked

  bool ok() const { return status == 200 || status == 206; }
  bool redirects() const { return status >= 301 && status <= 308 && status != 304; }
  bool retryable() const { return status == 0 || status == 408 || status == 429 || status >= 500; }
  std::string header(const std::string& name) const;
};

// One GET without redirects, cookies or proxies; used once. Stalls for a minute
// end it. curl_global_init has been called.
class HttpGet {
 public:
  // `sink` gets the body of a 200 or 206; what it or `check` returns ends it.
  using Sink = std::function<absl::Status(std::string_view data, const HttpAnswer& answer)>;

  // Without `any_address` only by https and only at public addresses.
  HttpGet(const Sink& sink, const TransferCheck& check, bool any_address);

  // `token` "" = none; `offset` > 0 asks for the rest from there.
  HttpAnswer Run(const Url& url, const std::string& token, std::int64_t offset);

  // What ended the transfer from this side.
  const absl::Status& stopped() const { return stopped_; }

 private:
  void SetOptions(CURL* curl);
  static std::size_t OnBody(char* data, std::size_t, std::size_t size, void* self);
  static std::size_t OnHeader(char* data, std::size_t, std::size_t size, void* self);
  static int OnProgress(void* self, curl_off_t, curl_off_t, curl_off_t, curl_off_t);
  static curl_socket_t OnSocket(void* self, curlsocktype, curl_sockaddr* address);

  struct Cleanup {
    void operator()(CURL* handle) const { curl_easy_cleanup(handle); }
  };
  const Sink& sink_;
  const TransferCheck& check_;
  const bool any_address_;
  bool asked_ = false;  // at an address that may be
  std::unique_ptr<CURL, Cleanup> handle_;
  HttpAnswer answer_;
  absl::Status stopped_;
};

}  // namespace quantry::agent
