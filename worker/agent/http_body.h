#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "common/storage.h"
#include "common/unique_fd.h"
#include "worker/agent/http_get.h"

namespace quantry::agent {

// One body on its way in, over any number of requests.
class HttpBody {
 public:
  HttpBody(std::string url, const TransferCheck& check) : url_(std::move(url)), check_(check) {}
  virtual ~HttpBody() = default;

  const std::string& url() const { return url_; }
  virtual std::int64_t offset() const = 0;
  virtual bool complete() const = 0;  // what there is, is all
  virtual absl::Status Restart() = 0;
  virtual absl::Status Append(std::string_view data) = 0;

  virtual void BeginRequest() { begins_ = true; }
  // A piece of the body of `answer`; what the body or the check returns ends it.
  absl::Status Take(std::string_view data, const HttpAnswer& answer);

 private:
  const std::string url_;
  const TransferCheck& check_;
  bool begins_ = true;
};

// In memory; small, so always from the start.
class MemoryBody : public HttpBody {
 public:
  MemoryBody(const std::string& url, std::int64_t max_bytes, const TransferCheck& check)
      : HttpBody(url, check), max_bytes_(max_bytes) {}

  std::int64_t offset() const override { return 0; }
  bool complete() const override { return true; }
  void BeginRequest() override { text.clear(); }
  absl::Status Restart() override { return absl::OkStatus(); }
  absl::Status Append(std::string_view data) override;

  std::string text;

 private:
  const std::int64_t max_bytes_;
};

// To the end of a file.
class FileBody : public HttpBody {
 public:
  FileBody(const std::string& url, std::string path, std::int64_t size_bytes,
           const TransferCheck& check);

  // First; what the file holds already counts.
  absl::Status Open();
  absl::Status Sync() const;

  std::int64_t offset() const override { return offset_; }
  bool complete() const override { return offset_ == size_bytes_; }
  absl::Status Restart() override;
  absl::Status Append(std::string_view data) override;

 private:
  const std::string path_;
  const std::int64_t size_bytes_;
  UniqueFd fd_;
  std::int64_t offset_ = 0;
};

}  // namespace quantry::agent
