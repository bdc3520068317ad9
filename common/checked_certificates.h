// The certificates of one end of TLS as gRPC gets them. gRPC 1.51 watches files
// itself but takes whatever is there: after a certificate that came before its key,
// or half a file, every handshake fails until the files are right, and an empty key
// ends the process. So it watches a copy in memory, which only files that can be used
// replace; until they can, what was read before stays in use.
//
// One thread at a time; gRPC reads the copy whenever it likes, also for a while after
// the last server or channel that used it: a copy stays until the process ends, one
// descriptor and a few kilobytes. Child processes do not get it, and nothing of it
// reaches a disk.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"

namespace quantry {

class CheckedCertificates {
 public:
  // A private key and its certificate chain. INVALID_ARGUMENT INVALID_CONFIG
  // names the file that cannot be used; another code: there is no memory or
  // descriptor for the copy.
  static absl::StatusOr<std::unique_ptr<CheckedCertificates>> OfPair(
      const std::string& certificate_file, const std::string& key_file);
  // The CAs of one file. Fails as OfPair does.
  static absl::StatusOr<std::unique_ptr<CheckedCertificates>> OfCas(const std::string& file);

  // Hears why files cannot be used, and until when those before are good.
  using Refused = std::function<void(const std::string& why)>;

  // Reads the files once and takes them if they can be used. Else tells `refused`,
  // once for each reason and at the second look that finds it: one may fall between
  // the two renames of a rotation.
  void Look(const Refused& refused);

  // Whether the last look could use the files.
  bool usable() const { return failure_.empty(); }
  // When the first certificate in use ends: the chain's own is the first.
  Time end() const { return end_; }
  // The copy, for this process: PEM, a key before its chain.
  const std::string& path() const { return path_; }

 private:
  using Read = std::function<absl::StatusOr<std::string>()>;

  explicit CheckedCertificates(Read read) : read_(std::move(read)) {}
  static absl::StatusOr<std::unique_ptr<CheckedCertificates>> Open(Read read);
  absl::Status Take();

  const Read read_;
  int copy_ = -1;  // never closed: gRPC aborts if it finds an empty file by this number
  std::string path_;
  Time end_;
  std::string failure_;  // of the last look
  std::string told_;     // the failure that `refused` heard since files were taken
};

}  // namespace quantry
