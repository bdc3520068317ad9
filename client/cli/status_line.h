#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "client/cli/environment.h"

namespace quantry::cli {

// Progress on stderr: one line redrawn in place on a terminal, nothing but the
// said lines elsewhere. Leaves a clean line behind. Not thread-safe.
class StatusLine {
 public:
  StatusLine(Environment& env, bool quiet) : env_(env), quiet_(quiet) {}
  ~StatusLine() { Clear(); }
  StatusLine(const StatusLine&) = delete;
  StatusLine& operator=(const StatusLine&) = delete;

  bool live() const { return env_.err_is_terminal && !quiet_; }
  int columns() const { return env_.columns(); }

  // Replaces the redrawn line; no-op when not live.
  void Draw(const std::string& text);
  void Clear();
  // A line that stays; the redrawn line goes on below it. No-op when quiet.
  void Say(const std::string& line);

 private:
  Environment& env_;
  const bool quiet_;
  std::string drawn_;
};

// Bytes moved so far as progress: "uploading model.safetensors 1.2 / 4.9 GB ...".
// Redraws at most every 100 ms; without a terminal says a line every 10 s.
class TransferMeter {
 public:
  TransferMeter(Environment& env, StatusLine& line, std::string verb, int64_t total_bytes);

  void Start(const std::string& file) { file_ = file; }
  void Add(int64_t bytes);
  // A transfer that went back to an earlier offset.
  void Rewind(int64_t bytes) { done_ -= bytes; }

  int64_t done() const { return done_; }
  double seconds() const;

 private:
  std::string Describe() const;

  Environment& env_;
  StatusLine& line_;
  const std::string verb_;
  const int64_t total_;
  std::string file_;
  int64_t done_ = 0;
  const std::chrono::steady_clock::time_point start_;
  std::chrono::steady_clock::time_point shown_;
};

}  // namespace quantry::cli
