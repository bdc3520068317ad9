#include "client/cli/job_filter.h"

#include <algorithm>

#include "client/cli/text.h"
#include "common/enum_word.h"
#include "quantry/v1/job.pb.h"

namespace quantry::cli {
namespace {

std::string Quoted(const std::string& value) {
  std::string text = "\"";
  for (const char c : value) {
    if (c == '"' || c == '\\') text += '\\';
    text += c;
  }
  return text + "\"";
}

std::string Upper(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
  return text;
}

}  // namespace

std::string FilterText(const JobFilter& filter) {
  std::vector<std::string> terms;
  if (!filter.state.empty()) terms.push_back("state = " + Upper(filter.state));
  if (!filter.method.empty()) terms.push_back("method = " + filter.method);
  for (const auto& [key, value] : filter.labels) {
    terms.push_back(Cat("labels.", key, " = ", Quoted(value)));
  }
  std::string text;
  for (const std::string& term : terms) text += (text.empty() ? "" : " AND ") + term;
  return text;
}

std::vector<std::string> StateWords() {
  std::vector<std::string> words;
  const auto* type = v1::JobState_descriptor();
  for (int i = 0; i < type->value_count(); ++i) {
    if (type->value(i)->number() == 0) continue;
    words.push_back(EnumWord(type->value(i)->name(), "JOB_STATE_"));
  }
  return words;
}

}  // namespace quantry::cli
