#pragma once

#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "client/cli/cli.h"

namespace quantry::cli {

inline constexpr char kJob[] = "tenants/default/quantizationJobs/my-job";

// One run of the whole CLI in the test's process. Its clock moves only when the
// CLI sleeps, so minutes of retries take no time.
struct CliRun {
  int code = -1;
  std::string out;
  std::string err;
  std::chrono::milliseconds slept{0};

  nlohmann::json json() const { return nlohmann::json::parse(out, nullptr, false); }
};

inline CliRun RunForTest(const std::vector<std::string>& arguments,
                         const std::map<std::string, std::string>& variables = {}) {
  CliRun run;
  std::ostringstream out;
  std::ostringstream err;
  Environment env{.out = out, .err = err};
  const auto start = std::chrono::steady_clock::now();
  env.ticks = [&run, start] { return start + run.slept; };
  env.sleep = [&run](std::chrono::milliseconds time) { run.slept += time; };
  env.variable = [&variables](std::string_view name) {
    const auto found = variables.find(std::string(name));
    return found == variables.end() ? std::string() : found->second;
  };
  run.code = RunCli(arguments, env);
  run.out = out.str();
  run.err = err.str();
  return run;
}

// A folder of the test's own, removed at the end.
class TempFolder {
 public:
  TempFolder() {
    std::string name = std::filesystem::temp_directory_path() / "quantry_cli_XXXXXX";
    path_ = mkdtemp(name.data());
  }
  ~TempFolder() { std::filesystem::remove_all(path_); }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }

  std::string Write(const std::string& name, const std::string& contents) const {
    const std::filesystem::path file = path_ + "/" + name;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file, std::ios::binary) << contents;
    return file;
  }
  std::string Read(const std::string& name) const {
    std::ifstream in(path_ + "/" + name, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(in), {});
  }

 private:
  std::string path_;
};

}  // namespace quantry::cli
