#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>

namespace quantry {

// Splits what comes out of a non-blocking descriptor into lines without ever
// holding more than `max_line` bytes. Does not own the descriptor. One thread.
class LineReader {
 public:
  // `line` comes without its newline; `cut` says that bytes beyond max_line
  // were dropped from it.
  using Sink = std::function<void(std::string_view line, bool cut)>;

  LineReader(int fd, std::size_t max_line) : fd_(fd), max_line_(max_line) {}

  // A full pipe of 1 MiB and a read for its end, in reads of 16 KiB.
  static constexpr int kWholePipe = 65;

  // Reads what is there now, but at most `max_reads` times: a writer that is as
  // fast as the sink would keep its caller for ever. Returns false at the end of
  // the stream, after handing over a last line that has no newline.
  bool Drain(const Sink& sink, int max_reads = kWholePipe);

 private:
  void Append(std::string_view bytes, const Sink& sink);
  void Emit(const Sink& sink);

  int fd_;
  std::size_t max_line_;
  std::string line_;
  bool cut_ = false;
};

}  // namespace quantry
