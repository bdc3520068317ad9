#include "common/sandbox/program_files.h"

#include <elf.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <optional>
#include <string_view>
#include <type_traits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "common/unique_fd.h"

namespace quantry {
namespace {

// A file mapped for reading; every access is checked against its length.
class MappedFile {
 public:
  MappedFile(int fd, std::size_t size) : size_(size) {
    if (size > 0) data_ = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
  }
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile() {
    if (ok()) munmap(data_, size_);
  }
  bool ok() const { return data_ != MAP_FAILED; }

  template <typename T>
  std::optional<T> At(std::uint64_t offset) const {
    static_assert(std::is_trivially_copyable_v<T>);
    if (offset > size_ || size_ - offset < sizeof(T)) return std::nullopt;
    T value;
    std::memcpy(&value, static_cast<const char*>(data_) + offset, sizeof(T));
    return value;
  }
  // The NUL-terminated text at `offset`; "" when there is none.
  std::string TextAt(std::uint64_t offset) const {
    if (offset >= size_) return "";
    const char* start = static_cast<const char*>(data_) + offset;
    const std::size_t length = strnlen(start, size_ - offset);
    return length == size_ - offset ? "" : std::string(start, length);
  }

 private:
  std::size_t size_;
  void* data_ = MAP_FAILED;
};

std::vector<Elf64_Phdr> ProgramHeaders(const MappedFile& file, const Elf64_Ehdr& header) {
  std::vector<Elf64_Phdr> headers;
  for (std::uint64_t i = 0; i < header.e_phnum; ++i) {
    const auto entry = file.At<Elf64_Phdr>(header.e_phoff + i * sizeof(Elf64_Phdr));
    if (entry) headers.push_back(*entry);
  }
  return headers;
}

// Where in the file an address of the loaded program lies.
std::optional<std::uint64_t> OffsetOf(const std::vector<Elf64_Phdr>& headers,
                                      std::uint64_t address) {
  for (const Elf64_Phdr& part : headers) {
    if (part.p_type == PT_LOAD && address >= part.p_vaddr &&
        address - part.p_vaddr < part.p_filesz) {
      return part.p_offset + (address - part.p_vaddr);
    }
  }
  return std::nullopt;
}

// The texts of DT_RPATH and DT_RUNPATH.
std::vector<std::string> SearchPaths(const MappedFile& file,
                                     const std::vector<Elf64_Phdr>& headers) {
  std::vector<std::uint64_t> names;
  std::optional<std::uint64_t> strings;
  for (const Elf64_Phdr& part : headers) {
    if (part.p_type != PT_DYNAMIC) continue;
    for (std::uint64_t at = 0; at + sizeof(Elf64_Dyn) <= part.p_filesz; at += sizeof(Elf64_Dyn)) {
      const auto entry = file.At<Elf64_Dyn>(part.p_offset + at);
      if (!entry || entry->d_tag == DT_NULL) break;
      if (entry->d_tag == DT_STRTAB) strings = OffsetOf(headers, entry->d_un.d_ptr);
      if (entry->d_tag == DT_RPATH || entry->d_tag == DT_RUNPATH) {
        names.push_back(entry->d_un.d_val);
      }
    }
  }
  std::vector<std::string> paths;
  for (const std::uint64_t name : names) {
    if (strings) paths.push_back(file.TextAt(*strings + name));
  }
  return paths;
}

absl::Status SystemError(int error, const std::string& path) {
  const std::string message = absl::StrCat(path, ": ", std::strerror(error));
  if (error == ENOENT || error == ENOTDIR) return absl::NotFoundError(message);
  return absl::PermissionDeniedError(message);
}

}  // namespace

absl::StatusOr<ProgramFiles> ReadProgramFiles(const std::string& path) {
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat info {};
  if (!fd.ok() || fstat(fd.get(), &info) != 0) return SystemError(errno, path);
  const MappedFile file(fd.get(), static_cast<std::size_t>(info.st_size));
  const auto header = file.ok() ? file.At<Elf64_Ehdr>(0) : std::nullopt;
  if (!header || std::memcmp(header->e_ident, ELFMAG, SELFMAG) != 0 ||
      header->e_ident[EI_CLASS] != ELFCLASS64 || header->e_phentsize != sizeof(Elf64_Phdr)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": wanted a 64-bit ELF program, got something else"));
  }
  const std::vector<Elf64_Phdr> headers = ProgramHeaders(file, *header);
  ProgramFiles files;
  for (const Elf64_Phdr& part : headers) {
    if (part.p_type == PT_INTERP) files.interpreter = file.TextAt(part.p_offset);
  }
  const std::string origin = std::filesystem::path(path).parent_path();
  for (const std::string& search : SearchPaths(file, headers)) {
    for (const absl::string_view folder : absl::StrSplit(search, ':', absl::SkipEmpty())) {
      files.library_folders.push_back(
          absl::StrReplaceAll(folder, {{"${ORIGIN}", origin}, {"$ORIGIN", origin}}));
    }
  }
  return files;
}

}  // namespace quantry
