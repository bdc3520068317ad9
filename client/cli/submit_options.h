#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "client/cli/spec.h"

namespace CLI {
class App;
}

namespace quantry::cli {

// The flags of submit; quote takes those that decide the result.
struct SubmitOptions {
  std::string model_dir;   // uploaded
  std::string model_path;  // on the server, below one of its roots
  std::string model_uri;
  std::string calibration;  // FILE or URI
  std::string evaluation;
  std::string preprocessing_corpus;
  std::string method_config;  // FILE
  SpecFlags spec;

  std::string id;
  std::string request_id;
  std::string title;
  std::vector<std::string> labels;
  int priority = 0;
  bool validate_only = false;
  bool check = true;
  bool trace = false;
  bool reuse_result = false;
  bool wait = false;
  double wait_timeout_s = 0;
  std::string download;
};

void AddSpecOptions(CLI::App& command, SubmitOptions& options);
void AddJobOptions(CLI::App& command, SubmitOptions& options);

// INVALID_ARGUMENT unless exactly one of MODEL_DIR, --model-path, --model-uri
// is given.
absl::Status CheckModelSource(const SubmitOptions& options);

const char* SubmitFooter();
const char* QuoteFooter();

}  // namespace quantry::cli
