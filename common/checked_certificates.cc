#include "common/checked_certificates.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/certificates.h"
#include "common/unique_fd.h"

namespace quantry {
namespace {

absl::Status CopyFailed() {
  return absl::ErrnoToStatus(errno, "cannot keep a copy of certificates in memory");
}

absl::StatusOr<UniqueFd> CopyInMemory(const std::string& text) {
  UniqueFd copy(memfd_create("quantry-certificates", MFD_CLOEXEC));
  if (!copy.ok()) return CopyFailed();
  for (size_t written = 0; written < text.size();) {
    const ssize_t n = write(copy.get(), text.data() + written, text.size() - written);
    if (n < 0 && errno != EINTR) return CopyFailed();
    if (n > 0) written += static_cast<size_t>(n);
  }
  return copy;
}

}  // namespace

absl::StatusOr<std::unique_ptr<CheckedCertificates>> CheckedCertificates::OfPair(
    const std::string& certificate_file, const std::string& key_file) {
  return Open([=] { return ReadKeyPair(certificate_file, key_file); });
}

absl::StatusOr<std::unique_ptr<CheckedCertificates>> CheckedCertificates::OfCas(
    const std::string& file) {
  return Open([=] { return ReadCertificates(file); });
}

absl::StatusOr<std::unique_ptr<CheckedCertificates>> CheckedCertificates::Open(Read read) {
  std::unique_ptr<CheckedCertificates> opened(new CheckedCertificates(std::move(read)));
  if (absl::Status status = opened->Take(); !status.ok()) return status;
  return opened;
}

void CheckedCertificates::Look(const Refused& refused) {
  const std::string failure(Take().message());
  const bool again = failure == failure_;
  failure_ = failure;
  if (failure.empty()) told_.clear();
  if (!again || failure == told_) return;
  told_ = failure;
  refused(absl::StrCat(
      failure, "; what was read before stays in use and ends at ",
      absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", absl::FromChrono(end_), absl::UTCTimeZone())));
}

// Key and chain are one file because two could not be replaced in one step. gRPC reads
// it for the key, then for the chain, and once more if the time of its last change (in
// whole seconds) moved meanwhile.
absl::Status CheckedCertificates::Take() {
  const auto text = read_();
  if (!text.ok()) return text.status();
  const auto facts = ReadCertificate(*text);
  if (!facts.ok()) return facts.status();
  auto copy = CopyInMemory(*text);
  if (!copy.ok()) return copy.status();
  if (copy_ < 0) {
    copy_ = copy->Release();
    path_ = absl::StrCat("/proc/self/fd/", copy_);
  } else if (dup3(copy->get(), copy_, O_CLOEXEC) < 0) {
    return CopyFailed();
  }
  end_ = facts->not_after;
  return absl::OkStatus();
}

}  // namespace quantry
