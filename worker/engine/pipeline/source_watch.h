#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

namespace quantry::engine {

// Whether the files of a job's model are still those it began with: weights are
// read block by block, and what outputs copy at the end, hours after all of it
// was hashed. Not thread-safe.
class SourceWatch {
 public:
  // Remembers which file it is, or that there is none.
  void Note(const std::string& path);
  // The digest of a noted file, so that one that was only touched is told from another.
  void SetDigest(const std::string& path, const std::string& sha256);

  // Throws UserError SOURCE_CHANGED naming the first file that is another one, went or
  // came; ENVIRONMENT "STORAGE_ERROR" where the disk cannot say.
  void Check();

 private:
  struct Identity {
    uint64_t device = 0;
    uint64_t inode = 0;
    int64_t bytes = 0;
    int64_t modified_ns = 0;
    bool operator==(const Identity&) const = default;
  };
  struct Watched {
    std::optional<Identity> identity;
    std::string sha256 = {};  // "" = not known
  };
  static std::optional<Identity> IdentityOf(const std::string& path);

  std::map<std::string, Watched> files_;
};

}  // namespace quantry::engine
