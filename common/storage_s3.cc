#include "common/storage_s3.h"

#include <arrow/filesystem/s3fs.h>
#include <arrow/status.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <mutex>

#include "common/storage_repeat.h"

namespace quantry::storage_internal {
namespace {

namespace afs = arrow::fs;

// Thread-safe: asked by every thread that has a request.
class Retries : public afs::S3RetryStrategy {
 public:
  bool ShouldRetry(const AWSErrorDetail& error, std::int64_t attempted) override {
    const bool no_room = error.message.find("flush response stream") != std::string::npos;
    return attempted < kMaxRepeats && (error.should_retry || no_room);
  }

  std::int64_t CalculateDelayBeforeNextRetry(const AWSErrorDetail& /*error*/,
                                             std::int64_t attempted) override {
    return RepeatDelay(attempted).count();
  }
};

// The S3 client is a library of its own beside libarrow, which registers the
// scheme when it is loaded.
arrow::Status LoadS3() {
  static std::mutex mutex;
  static bool loaded = false;
  const std::lock_guard lock(mutex);
  if (loaded) return arrow::Status::OK();
  Dl_info info;
  if (dladdr(reinterpret_cast<void*>(&afs::EnsureFinalized), &info) == 0) {
    return arrow::Status::UnknownError("cannot find libarrow in this process");
  }
  const std::filesystem::path arrow_path(info.dli_fname);
  std::string name = arrow_path.filename().native();
  name.replace(name.find("libarrow"), std::string_view("libarrow").size(), "libarrow_s3");
  auto status = afs::LoadFileSystemFactories((arrow_path.parent_path() / name).c_str());
  loaded = status.ok();
  return status;
}

// Small objects in one request instead of a multipart upload of three.
std::string WithSinglePuts(std::string_view uri) {
  constexpr std::string_view kOption = "allow_delayed_open=";
  std::string text(uri);
  if (uri.find(kOption) != std::string_view::npos) return text;
  text += uri.find('?') == std::string_view::npos ? "?" : "&";
  return text.append(kOption).append("true");
}

// The value of an option in a URI's query; "" when it is not there.
std::string OptionOf(std::string_view uri, std::string_view name) {
  for (std::size_t at = uri.find('?'); at < uri.size();) {
    const std::size_t end = std::min(uri.find('&', at + 1), uri.size());
    const std::string_view option = uri.substr(at + 1, end - at - 1);
    if (option.starts_with(name) && option.substr(name.size()).starts_with('=')) {
      return std::string(option.substr(name.size() + 1));
    }
    at = end;
  }
  return "";
}

}  // namespace

arrow::Result<std::shared_ptr<afs::FileSystem>> OpenS3(std::string_view uri, std::string* base) {
  if (auto status = LoadS3(); !status.ok()) return status;
  const std::shared_ptr<afs::S3RetryStrategy> retries = std::make_shared<Retries>();
  return afs::FileSystemFromUriAndOptions(WithSinglePuts(uri), {{"retry_strategy", retries}}, base);
}

std::string OtherRegionHint(std::string_view uri, std::string_view error) {
  // A HEAD has no document to say it, only the status.
  constexpr std::string_view kSigns[] = {"PermanentRedirect", "PERMANENT_REDIRECT",
                                         "HTTP status 301", "AuthorizationHeaderMalformed",
                                         "AUTHORIZATION_HEADER_MALFORMED"};
  const bool other = std::any_of(std::begin(kSigns), std::end(kSigns), [&](std::string_view sign) {
    return error.find(sign) != std::string_view::npos;
  });
  if (!other) return "";
  std::string bucket(uri.substr(uri.find("://") + 3));
  bucket.erase(std::min(bucket.find_first_of("/?"), bucket.size()));
  bucket.erase(0, bucket.rfind('@') + 1);  // never the keys before it
  const std::string region = OptionOf(uri, "region");
  return "; bucket " + bucket + " was asked in region " +
         (region.empty() ? "of this machine's settings (AWS_REGION)" : region) +
         " and is in another one, or at another endpoint: say its own, s3://" + bucket +
         "/...?region=REGION";
}

}  // namespace quantry::storage_internal
