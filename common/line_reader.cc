#include "common/line_reader.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

namespace quantry {
namespace {

constexpr std::size_t kReadBytes = 16 << 10;

}  // namespace

bool LineReader::Drain(const Sink& sink, int max_reads) {
  std::array<char, kReadBytes> buffer;
  for (int reads = 0; reads < max_reads; ++reads) {
    const ssize_t n = read(fd_, buffer.data(), buffer.size());
    if (n > 0) {
      Append({buffer.data(), static_cast<std::size_t>(n)}, sink);
      continue;
    }
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return true;
    if (!line_.empty() || cut_) Emit(sink);
    return false;
  }
  return true;
}

void LineReader::Append(std::string_view bytes, const Sink& sink) {
  while (!bytes.empty()) {
    const std::size_t newline = bytes.find('\n');
    const std::string_view part = bytes.substr(0, newline);
    const std::size_t room = max_line_ - line_.size();
    line_.append(part.substr(0, room));
    cut_ = cut_ || part.size() > room;
    if (newline == std::string_view::npos) return;
    Emit(sink);
    bytes.remove_prefix(newline + 1);
  }
}

void LineReader::Emit(const Sink& sink) {
  sink(line_, cut_);
  line_.clear();
  cut_ = false;
}

}  // namespace quantry
