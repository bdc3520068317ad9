#include "server/rpc/filter.h"

#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/errors.h"

namespace quantry::server {
namespace {

constexpr size_t kMaxFilterBytes = 2048;
constexpr size_t kMaxLabelTerms = 16;

bool IsWordChar(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
         c == '-' || c == '.' || c == '/';
}

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  absl::StatusOr<JobFilter> Parse() {
    SkipSpace();
    while (position_ < text_.size()) {
      if (absl::Status status = Term(); !status.ok()) return status;
      SkipSpace();
      if (position_ == text_.size()) break;
      if (Word() != "AND") return Wanted("AND between terms");
      SkipSpace();
      if (position_ == text_.size()) return Wanted("a term after AND");
    }
    return filter_;
  }

 private:
  absl::Status Wanted(std::string_view what) const {
    return MakeError(
        Reason::kInvalidFilter,
        absl::StrCat("filter, byte ", position_, ": wanted ", std::string(what),
                     "; example: state = RUNNING AND method = awq AND labels.team = \"nlp\""),
        {{"position", absl::StrCat(position_)}});
  }

  void SkipSpace() {
    while (position_ < text_.size() && text_[position_] == ' ') ++position_;
  }

  std::string Word() {
    const size_t begin = position_;
    while (position_ < text_.size() && IsWordChar(text_[position_])) ++position_;
    return std::string(text_.substr(begin, position_ - begin));
  }

  // A quoted string or a word; nullopt when neither is there.
  std::optional<std::string> Value() {
    if (position_ < text_.size() && text_[position_] != '"') {
      std::string word = Word();
      if (word.empty()) return std::nullopt;
      return word;
    }
    std::string value;
    for (++position_; position_ < text_.size(); ++position_) {
      if (text_[position_] == '"') {
        ++position_;
        return value;
      }
      if (text_[position_] == '\\' && ++position_ == text_.size()) break;
      value.push_back(text_[position_]);
    }
    return std::nullopt;
  }

  absl::Status Term() {
    const std::string field = Word();
    SkipSpace();
    if (position_ == text_.size() || text_[position_] != '=') {
      return Wanted(field.empty() ? "state, method or labels.KEY" : "= after the field");
    }
    ++position_;
    SkipSpace();
    const auto value = Value();
    if (!value) return Wanted("a value");
    return Apply(field, *value);
  }

  absl::Status Apply(const std::string& field, const std::string& value) {
    if (field == "state" && filter_.states.empty()) return State(value);
    if (field == "method" && filter_.method.empty() && !value.empty()) {
      filter_.method = value;
      return absl::OkStatus();
    }
    if (field.rfind("labels.", 0) == 0 && field.size() > 7) {
      if (filter_.labels.size() == kMaxLabelTerms) return Wanted("at most 16 label terms");
      if (filter_.labels.emplace(field.substr(7), value).second) return absl::OkStatus();
    }
    return Wanted(absl::StrCat("state, method or labels.KEY, each once; got '", field, "'"));
  }

  absl::Status State(const std::string& name) {
    std::vector<std::string> known;
    for (const JobState state : kAllJobStates) {
      known.emplace_back(JobStateName(state));
      if (name == JobStateName(state)) filter_.states.push_back(state);
    }
    if (filter_.states.empty()) {
      return Wanted(absl::StrCat("one of ", absl::StrJoin(known, ", "), "; got '", name, "'"));
    }
    return absl::OkStatus();
  }

  std::string_view text_;
  size_t position_ = 0;
  JobFilter filter_;
};

}  // namespace

absl::StatusOr<JobFilter> ParseJobFilter(std::string_view text) {
  if (text.size() > kMaxFilterBytes) {
    return MakeError(
        Reason::kInvalidFilter,
        absl::StrCat("wanted a filter of at most ", kMaxFilterBytes, " bytes, got ", text.size()));
  }
  return Parser(text).Parse();
}

}  // namespace quantry::server
