#include "common/storage.h"

#include <cctype>

#include "common/ids.h"
#include "common/storage_internal.h"
#include "common/utf8_prefix.h"

namespace quantry {
namespace {

constexpr std::string_view kFileScheme = "file://";

// One percent-encoded or plain character; -1 when the encoding is broken.
int DecodeAt(std::string_view text, std::size_t& i) {
  if (text[i] != '%') return static_cast<unsigned char>(text[i]);
  if (i + 2 >= text.size() || !std::isxdigit(static_cast<unsigned char>(text[i + 1])) ||
      !std::isxdigit(static_cast<unsigned char>(text[i + 2]))) {
    return -1;
  }
  const int value = std::stoi(std::string(text.substr(i + 1, 2)), nullptr, 16);
  i += 2;
  return value;
}

std::string_view SchemeOf(std::string_view uri) {
  const std::size_t colon = uri.find("://");
  return colon == std::string_view::npos ? std::string_view() : uri.substr(0, colon);
}

// "7-0": as PendingFile names its file.
bool IsProcessAndCount(std::string_view text) {
  const auto is_number = [](std::string_view part) {
    return !part.empty() && part.find_first_not_of("0123456789") == part.npos;
  };
  const std::size_t hyphen = text.find('-');
  return hyphen != text.npos && is_number(text.substr(0, hyphen)) &&
         is_number(text.substr(hyphen + 1));
}

}  // namespace

std::string JoinUri(std::string_view uri, std::string_view relative) {
  const std::size_t query = std::min(uri.find('?'), uri.size());
  std::string joined(uri.substr(0, query));
  while (joined.ends_with('/')) joined.pop_back();
  joined.append("/").append(relative);
  return joined.append(uri.substr(query));
}

absl::Status CheckRelativePath(std::string_view path) {
  const auto refuse = [&](const char* why) {
    return absl::InvalidArgumentError("path \"" + Utf8Prefix(path, 200) + "\" " + why +
                                      "; a relative path such as \"a/b.json\" is needed");
  };
  if (path.empty()) return refuse("is empty");
  if (path.size() > 4096) return refuse("is longer than 4096 bytes");
  if (path.find('\\') != std::string_view::npos) return refuse("holds a backslash");
  if (path.find('\0') != std::string_view::npos) return refuse("holds a NUL byte");
  std::size_t begin = 0;
  while (begin <= path.size()) {
    const std::size_t end = std::min(path.find('/', begin), path.size());
    const std::string_view part = path.substr(begin, end - begin);
    if (part.empty()) return refuse("is absolute or has an empty part");
    if (part == "." || part == "..") return refuse("holds \".\" or \"..\"");
    begin = end + 1;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<StoredFile>> Storage::ListFolder(std::string_view prefix) {
  auto files = List(prefix);
  if (!files.ok()) return files;
  const std::size_t folder = prefix.empty() ? 0 : prefix.size() + 1;
  std::erase_if(*files, [folder](const StoredFile& file) {
    return file.path.find('/', folder) != std::string::npos;
  });
  return files;
}

std::string_view TemporaryOf(std::string_view path) {
  using storage_internal::kTemporaryPrefix;
  const std::string_view name = path.substr(path.rfind('/') + 1);
  if (name.starts_with(kTemporaryPrefix) &&
      IsProcessAndCount(name.substr(kTemporaryPrefix.size()))) {
    return path;
  }
  for (std::size_t begin = 0, end = 0; (end = path.find('/', begin)) != path.npos;
       begin = end + 1) {
    const std::string_view part = path.substr(begin, end - begin);
    if (part.starts_with(kTemporaryPrefix) && IsUuid(part.substr(kTemporaryPrefix.size()))) {
      return path.substr(0, end);
    }
  }
  return "";
}

absl::StatusOr<std::string> LocalPathFromUri(std::string_view uri) {
  if (uri.starts_with('/')) return std::string(uri);
  if (!uri.starts_with(kFileScheme)) {
    return absl::InvalidArgumentError("\"" + std::string(uri) +
                                      "\" is not a file URI (file:///folder)");
  }
  std::string_view rest = uri.substr(kFileScheme.size());
  if (rest.starts_with("localhost/")) rest.remove_prefix(std::string_view("localhost").size());
  if (!rest.starts_with('/')) {
    return absl::InvalidArgumentError("\"" + std::string(uri) +
                                      "\" needs an absolute path: file:///folder");
  }
  std::string path;
  for (std::size_t i = 0; i < rest.size(); ++i) {
    const int c = DecodeAt(rest, i);
    if (c <= 0) {
      return absl::InvalidArgumentError("\"" + std::string(uri) +
                                        "\" has a broken percent-encoding");
    }
    path.push_back(static_cast<char>(c));
  }
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

std::string UriFromLocalPath(std::string_view path) {
  static constexpr char kHex[] = "0123456789ABCDEF";
  std::string uri(kFileScheme);
  for (const char c : path) {
    const auto byte = static_cast<unsigned char>(c);
    if (std::isalnum(byte) || std::string_view("/-._~").find(c) != std::string_view::npos) {
      uri.push_back(c);
    } else {
      uri += {'%', kHex[byte >> 4], kHex[byte & 15]};
    }
  }
  return uri;
}

std::string ObjectPathOf(std::string_view uri) {
  std::string_view rest = uri.substr(std::min(uri.find("://"), uri.size()));
  if (rest.empty()) return "";
  rest.remove_prefix(3);
  rest = rest.substr(0, rest.find('?'));
  const std::string_view authority = rest.substr(0, rest.find('/'));
  const std::string_view path = rest.substr(authority.size());
  const std::size_t at = authority.rfind('@');
  const std::string_view user = authority.substr(0, at == std::string_view::npos ? 0 : at);
  const std::string_view host = authority.substr(at == std::string_view::npos ? 0 : at + 1);
  std::string bucket(host);
  if (uri.starts_with("abfs") && host.find_first_of(".:") != std::string_view::npos) {
    // A host: container@account.dfs.core.windows.net, or the container begins the path.
    bucket = host.find(".dfs.") != std::string_view::npos ? std::string(user) : "";
  }
  bucket.append(path);
  while (bucket.ends_with('/')) bucket.pop_back();
  return bucket.starts_with('/') ? bucket.substr(1) : bucket;
}

absl::StatusOr<std::unique_ptr<Storage>> OpenStorage(std::string_view uri) {
  const std::string_view scheme = SchemeOf(uri);
  if (scheme == "file" || uri.starts_with('/')) {
    auto path = LocalPathFromUri(uri);
    if (!path.ok()) return path.status();
    return storage_internal::OpenLocalStorage(*path);
  }
  for (const std::string_view known : {"s3", "gs", "gcs", "abfs", "abfss"}) {
    if (scheme == known) return storage_internal::OpenArrowStorage(uri);
  }
  return absl::InvalidArgumentError("storage URI \"" + std::string(uri) +
                                    "\": wanted file://, s3://, gs:// or abfs://");
}

void FinalizeStorage() { storage_internal::FinalizeArrow(); }

}  // namespace quantry

namespace quantry::storage_internal {

absl::StatusOr<std::string> ReadWhole(Storage& storage, std::string_view path,
                                      std::int64_t max_bytes) {
  auto reader = storage.Open(path);
  if (!reader.ok()) return reader.status();
  if ((*reader)->size_bytes() > max_bytes) {
    return absl::ResourceExhaustedError(
        std::string(path) + " has " + std::to_string((*reader)->size_bytes()) + " bytes, at most " +
        std::to_string(max_bytes) + " are read");
  }
  return (*reader)->ReadAt(0, (*reader)->size_bytes());
}

}  // namespace quantry::storage_internal
