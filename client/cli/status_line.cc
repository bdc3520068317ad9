#include "client/cli/status_line.h"

#include <algorithm>
#include <ostream>

#include "client/cli/format.h"
#include "client/cli/text.h"

namespace quantry::cli {
namespace {

constexpr auto kRedraw = std::chrono::milliseconds(100);
constexpr auto kSay = std::chrono::seconds(10);

}  // namespace

void StatusLine::Draw(const std::string& text) {
  if (!live() || text == drawn_) return;
  // Wider than the terminal would wrap and leave litter.
  env_.err << '\r' << text.substr(0, static_cast<size_t>(std::max(1, columns() - 1))) << "\x1b[K"
           << std::flush;
  drawn_ = text;
}

void StatusLine::Clear() {
  if (drawn_.empty()) return;
  env_.err << "\r\x1b[K" << std::flush;
  drawn_.clear();
}

void StatusLine::Say(const std::string& line) {
  if (quiet_) return;
  const std::string drawn = drawn_;
  Clear();
  env_.err << line << '\n' << std::flush;
  if (!drawn.empty()) Draw(drawn);
}

TransferMeter::TransferMeter(Environment& env, StatusLine& line, std::string verb,
                             int64_t total_bytes)
    : env_(env),
      line_(line),
      verb_(std::move(verb)),
      total_(total_bytes),
      start_(env.ticks()),
      shown_(start_) {}

double TransferMeter::seconds() const {
  return std::chrono::duration<double>(env_.ticks() - start_).count();
}

std::string TransferMeter::Describe() const {
  const double elapsed = std::max(1e-3, seconds());
  const double rate = static_cast<double>(std::max<int64_t>(0, done_)) / elapsed;
  std::string text = Cat(verb_, " ", file_, "  ", Bytes(done_), " / ", Bytes(total_), "  ",
                         Percent(total_ > 0 ? static_cast<double>(done_) / total_ : 1.0), "  ",
                         Bytes(static_cast<int64_t>(rate)), "/s");
  if (rate > 0 && done_ < total_) text += Cat("  eta ", Seconds((total_ - done_) / rate));
  return text;
}

void TransferMeter::Add(int64_t bytes) {
  done_ += bytes;
  const auto now = env_.ticks();
  if (now - shown_ <
      (line_.live() ? std::chrono::milliseconds(kRedraw) : std::chrono::milliseconds(kSay))) {
    return;
  }
  shown_ = now;
  line_.live() ? line_.Draw(Describe()) : line_.Say(Describe());
}

}  // namespace quantry::cli
