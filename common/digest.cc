#include "common/digest.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "common/errors.h"

namespace quantry {
namespace {

constexpr size_t kReadBytes = size_t{1} << 20;
constexpr size_t kSha256Bytes = 32;

std::string ToHex(const unsigned char* bytes, size_t size) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string hex;
  hex.reserve(2 * size);
  for (size_t i = 0; i < size; ++i) {
    hex.push_back(kDigits[bytes[i] >> 4]);
    hex.push_back(kDigits[bytes[i] & 15]);
  }
  return hex;
}

// Only a broken OpenSSL installation or no memory makes these calls fail.
void Require(int ok) {
  if (ok != 1) std::abort();
}

}  // namespace

struct Sha256::Context {
  Context() : evp(EVP_MD_CTX_new()) { Reset(); }
  ~Context() { EVP_MD_CTX_free(evp); }
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;
  void Reset() { Require(EVP_DigestInit_ex(evp, EVP_sha256(), nullptr)); }

  EVP_MD_CTX* evp;
};

Sha256::Sha256() : context_(std::make_unique<Context>()) {}
Sha256::~Sha256() = default;
Sha256::Sha256(Sha256&&) noexcept = default;
Sha256& Sha256::operator=(Sha256&&) noexcept = default;

void Sha256::Update(std::string_view data) {
  Require(EVP_DigestUpdate(context_->evp, data.data(), data.size()));
}

std::string Sha256::FinishHex() {
  std::array<unsigned char, kSha256Bytes> bytes;
  unsigned size = 0;
  Require(EVP_DigestFinal_ex(context_->evp, bytes.data(), &size));
  context_->Reset();
  return ToHex(bytes.data(), size);
}

std::string Sha256Hex(std::string_view data) {
  Sha256 hash;
  hash.Update(data);
  return hash.FinishHex();
}

bool IsSha256Hex(std::string_view text) {
  return text.size() == 2 * kSha256Bytes && std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

absl::StatusOr<FileDigest> Sha256File(const std::string& path,
                                      const std::function<absl::Status()>& check) {
  auto fail = [&](int error) {
    Reason reason = error == ENOENT ? Reason::kFileNotFound : Reason::kStorageError;
    return MakeError(reason, "cannot read " + path + ": " + std::strerror(error),
                     {{"path", path}, {"error", std::strerror(error)}});
  };
  int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return fail(errno);
  Sha256 hash;
  FileDigest digest;
  std::vector<char> buffer(kReadBytes);
  ssize_t got = 0;
  absl::Status stopped;
  while (stopped.ok() && (got = read(fd, buffer.data(), buffer.size())) != 0) {
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) break;
    hash.Update(buffer.data(), static_cast<size_t>(got));
    digest.size_bytes += got;
    if (check) stopped = check();
  }
  int error = got < 0 ? errno : 0;
  close(fd);
  if (!stopped.ok()) return stopped;
  if (error != 0) return fail(error);
  digest.sha256 = hash.FinishHex();
  return digest;
}

}  // namespace quantry
